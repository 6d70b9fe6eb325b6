//! Who a request speaks for.

use std::collections::HashMap;

use keiko_core::TenantId;

use crate::token::{Token, TokenEntry};

/// The tokens of a host.
#[derive(Debug)]
pub enum Auth {
    /// Whoever reaches the host speaks for this tenant.
    Open(TenantId),
    /// A token says for whom.
    Tokens(HashMap<String, (TenantId, TokenEntry)>),
}

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Speaker {
    /// For whom.
    pub tenant: TenantId,
    /// Whether they may also do what concerns the whole host.
    pub operator: bool,
}

/// The request carries no token, or none that is worth anything. Which of the two is all a client learns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// There is no `Authorization: Bearer`.
    Missing,
    /// The token is malformed, unknown, wrong or expired.
    Wrong,
}

impl Auth {
    /// Who speaks, by the value of `Authorization`.
    pub fn speaker(&self, header: Option<&[u8]>, now_ms: i64) -> Result<Speaker, Refused> {
        let entries = match self {
            Auth::Open(tenant) => return Ok(Speaker { tenant: *tenant, operator: true }),
            Auth::Tokens(entries) => entries,
        };
        let text = std::str::from_utf8(header.ok_or(Refused::Missing)?).map_err(|_| Refused::Wrong)?;
        let (scheme, token) = text.split_once(' ').ok_or(Refused::Wrong)?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Err(Refused::Missing);
        }
        let token = Token::parse(token.trim()).map_err(|_| Refused::Wrong)?;
        let hash = token.hash();
        let (tenant, entry) = entries.get(token.id()).ok_or(Refused::Wrong)?;
        // `blake3::Hash` compares in constant time.
        let right = entry.hash == hash;
        let fresh = entry.expires_ms.is_none_or(|expires| now_ms < expires);
        if right && fresh {
            Ok(Speaker { tenant: *tenant, operator: entry.operator })
        } else {
            Err(Refused::Wrong)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(token: &Token, expires_ms: Option<i64>) -> TokenEntry {
        TokenEntry {
            id: token.id().to_owned(),
            hash: token.hash(),
            name: None,
            expires_ms,
            operator: expires_ms.is_some(),
        }
    }

    #[test]
    fn only_the_token_itself_speaks_for_its_tenant() {
        let (mine, other) = (Token::new([1; 5], [1; 32]), Token::new([2; 5], [2; 32]));
        let (forged, stranger) = (Token::new([1; 5], [9; 32]), Token::new([3; 5], [3; 32]));
        let entries = [(TenantId(1), &mine, None), (TenantId(2), &other, Some(100))];
        let entries =
            entries.map(|(tenant, token, end)| (token.id().to_owned(), (tenant, entry(token, end))));
        let auth = Auth::Tokens(entries.into());
        let check = |header: Option<String>, now_ms, expected| {
            let got = auth.speaker(header.as_deref().map(str::as_bytes), now_ms);
            assert_eq!(got, expected, "{header:?}");
        };
        let bearer = |token: &Token| Some(format!("Bearer {}", token.reveal()));
        let one = Speaker { tenant: TenantId(1), operator: false };
        check(bearer(&mine), 0, Ok(one));
        check(Some(format!("bearer  {}", mine.reveal())), 0, Ok(one));
        check(bearer(&other), 99, Ok(Speaker { tenant: TenantId(2), operator: true }));
        check(bearer(&other), 100, Err(Refused::Wrong));
        check(bearer(&forged), 0, Err(Refused::Wrong));
        check(bearer(&stranger), 0, Err(Refused::Wrong));
        check(Some("Basic a2Vpa286".to_owned()), 0, Err(Refused::Missing));
        check(Some(mine.reveal().to_owned()), 0, Err(Refused::Wrong));
        check(None, 0, Err(Refused::Missing));
    }

    #[test]
    fn an_open_host_asks_for_nothing() {
        let anybody = Ok(Speaker { tenant: TenantId(7), operator: true });
        assert_eq!(Auth::Open(TenantId(7)).speaker(None, 0), anybody);
        assert_eq!(Auth::Open(TenantId(7)).speaker(Some(b"Bearer x"), 0), anybody);
    }
}
