//! Tokens of the API: `keiko_<id>_<secret><check>`, all hexadecimal.
//!
//! - The id (10 digits) finds the entry; it is no secret and may be logged.
//! - The secret is 256 random bits, so a fast hash protects it: nothing can guess it.
//! - The check is CRC-32 of what stands before it: a token that was cut or mistyped is told from a wrong one,
//!   and scanners for leaked secrets can recognise a token.
//!
//! A host keeps only the keyed BLAKE3 hash of the whole token; comparing two takes the same time wherever
//! they differ.

use std::fmt;

/// Bytes of an id.
const ID_BYTES: usize = 5;
/// Bytes of a secret.
const SECRET_BYTES: usize = 32;
/// Hexadecimal digits of the check.
const CHECK_DIGITS: usize = 8;
const PREFIX: &str = "keiko_";
const HASH_PREFIX: &str = "blake3:";
/// Keys the hash, so that it is of no use anywhere else. Changing it makes every token wrong.
const HASH_CONTEXT: &str = "keiko 2026-11 API token, version 1";

/// A token in full: what a client sends. `Debug` shows only its id.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// A token of the operating system's random bytes.
    pub fn random() -> Result<Token, getrandom::Error> {
        let (mut id, mut secret) = ([0; ID_BYTES], [0; SECRET_BYTES]);
        getrandom::fill(&mut id)?;
        getrandom::fill(&mut secret)?;
        Ok(Token::new(id, secret))
    }

    /// The token of these bytes.
    pub fn new(id: [u8; ID_BYTES], secret: [u8; SECRET_BYTES]) -> Token {
        let mut text = format!("{PREFIX}{}_{}", hex(&id), hex(&secret));
        let check = crc32(text.as_bytes());
        text.push_str(&format!("{check:08x}"));
        Token(text)
    }

    /// Reads a token; the error says how it differs from one.
    pub fn parse(text: &str) -> Result<Token, &'static str> {
        let rest = text.strip_prefix(PREFIX).ok_or("a token starts with `keiko_`")?;
        let (id, secret) = rest.split_once('_').ok_or("a token is `keiko_`, an id, `_` and a secret")?;
        let digits = |text: &str| text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if id.len() != 2 * ID_BYTES || !digits(id) {
            return Err("the token's id is not 10 hexadecimal digits");
        }
        if secret.len() != 2 * SECRET_BYTES + CHECK_DIGITS || !digits(secret) {
            return Err("the token's secret is not 72 hexadecimal digits; is part of it missing?");
        }
        let (body, check) = text.split_at(text.len() - CHECK_DIGITS);
        if format!("{:08x}", crc32(body.as_bytes())) != check {
            return Err("the token's last 8 digits do not fit the others: it was mistyped");
        }
        Ok(Token(text.to_owned()))
    }

    /// What finds its entry.
    pub fn id(&self) -> &str {
        &self.0[PREFIX.len()..PREFIX.len() + 2 * ID_BYTES]
    }

    /// What a host keeps of it.
    pub fn hash(&self) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new_derive_key(HASH_CONTEXT);
        hasher.update(self.0.as_bytes());
        hasher.finalize()
    }

    /// Its entry for `tokens` in `keiko.toml`.
    pub fn line(&self, name: Option<&str>) -> String {
        let name = name.map(|name| format!(", name = {}", toml::Value::from(name))).unwrap_or_default();
        format!("{{ id = \"{}\", hash = \"{HASH_PREFIX}{}\"{name} }}", self.id(), self.hash().to_hex())
    }

    /// The whole token. It is shown once, to whoever made it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({PREFIX}{}_…)", self.id())
    }
}

/// What a host keeps of a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenEntry {
    /// Finds it.
    pub id: String,
    /// Proves it.
    pub hash: blake3::Hash,
    /// For people.
    pub name: Option<String>,
    /// It is worth nothing from then on, in milliseconds since 1970.
    pub expires_ms: Option<i64>,
    /// Whether it may also do what concerns the whole host.
    pub operator: bool,
}

impl TokenEntry {
    /// What `keiko config` shows of it: enough to find it, and not its hash.
    pub fn shown(&self) -> String {
        let operator = if self.operator { ", operator" } else { "" };
        match &self.name {
            Some(name) => format!("{PREFIX}{}_… ({name}{operator})", self.id),
            None => format!("{PREFIX}{}_…{operator}", self.id),
        }
    }
}

/// Whether `text` can be a token's id.
pub fn check_id(text: &str) -> Result<(), String> {
    let digits = text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    if text.len() == 2 * ID_BYTES && digits {
        Ok(())
    } else {
        Err(format!("`{text}` is not a token's id: 10 hexadecimal digits, as `keiko token hash` prints them"))
    }
}

/// Reads the hash of an entry.
pub fn parse_hash(text: &str) -> Result<blake3::Hash, String> {
    let wrong =
        || "expected `blake3:` and 64 hexadecimal digits, as `keiko token hash` prints them".to_owned();
    let digits = text.strip_prefix(HASH_PREFIX).ok_or_else(wrong)?;
    blake3::Hash::from_hex(digits).map_err(|_| wrong())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// CRC-32 as zip, PNG and Ethernet have it, bit by bit: tokens are short and rare.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_check_is_the_known_crc() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn a_token_reads_back_and_its_hash_stands_still() {
        let token = Token::new([1; ID_BYTES], [2; SECRET_BYTES]);
        assert_eq!(Token::parse(token.reveal()), Ok(token.clone()));
        assert_eq!(token.id(), "0101010101");
        let sample = "a7043860abf6fb70f12291a4c1429349ddc6ede0ff7c5b3d99c3eb38f954adcf";
        assert_eq!(parse_hash(&format!("blake3:{}", token.hash().to_hex())), Ok(token.hash()));
        assert_eq!(token.hash().to_hex().as_str(), sample, "every token out there would be wrong");
    }

    #[test]
    fn what_is_no_token_is_told_why() {
        let token = Token::new([1; ID_BYTES], [2; SECRET_BYTES]);
        let good = token.reveal();
        let check = |text: &str, expected: &str| {
            let error = Token::parse(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        };
        check("", "starts with");
        check("keiko_", "an id");
        check(&good.replace("0101", "01"), "10 hexadecimal digits");
        check(&good[..good.len() - 1], "is part of it missing");
        check(&good.replace("_0202", "_0303"), "mistyped");
        check(&good.replace("02020202", "0202020A"), "72 hexadecimal digits");
        check(&format!("{good}é"), "72 hexadecimal digits");
    }

    #[test]
    fn two_tokens_are_two() {
        let (a, b) = (Token::random().unwrap(), Token::random().unwrap());
        assert_ne!(a.reveal(), b.reveal());
        assert!(!format!("{a:?}").contains(&a.reveal()[20..]), "a token is not for logs");
        let line: toml::Table = format!("token = {}", a.line(Some("lap\"top"))).parse().unwrap();
        assert_eq!(line["token"]["name"].as_str(), Some("lap\"top"));
    }
}
