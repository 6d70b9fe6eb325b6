//! Signatures of plugins: who a tenant believes, and what a signature stands for.
//!
//! A signature is Ed25519 over the hash of a component and of the manifest that is given beside it, if one is: neither can be
//! exchanged for another. A tenant with `signers` takes no component without a signature of one of them, whichever way it
//! comes; it is looked at before anything is compiled. What was installed before stays.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use keiko_core::{Code, TenantId};
use keiko_runtime::Error;
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};

/// What a written key begins with.
const SCHEME: &str = "ed25519:";

/// Somebody whose signatures a tenant believes: a public key, written as `ed25519:` and base64.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signer([u8; 32]);

impl FromStr for Signer {
    type Err = String;

    fn from_str(text: &str) -> Result<Signer, String> {
        let key = text.strip_prefix(SCHEME).and_then(decode::<32>);
        key.map(Signer).ok_or_else(|| {
            format!("`{text}` is no key, such as {SCHEME} and 43 letters; `keiko plugin key` makes one")
        })
    }
}

impl fmt::Display for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}", URL_SAFE_NO_PAD.encode(self.0))
    }
}

/// A secret key: its seed, and the pair of it.
pub(crate) struct Secret([u8; 32], Ed25519KeyPair);

impl Secret {
    /// A new one.
    pub(crate) fn new() -> Option<Secret> {
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).ok()?;
        Secret::of(seed)
    }

    fn of(seed: [u8; 32]) -> Option<Secret> {
        Some(Secret(seed, Ed25519KeyPair::from_seed_unchecked(&seed).ok()?))
    }

    /// Reads what [`Secret::text`] wrote.
    pub(crate) fn read(text: &str) -> Option<Secret> {
        decode(text.trim()).and_then(Secret::of)
    }

    /// As it stands in its file.
    pub(crate) fn text(&self) -> String {
        URL_SAFE_NO_PAD.encode(self.0)
    }

    /// Whose signatures it makes.
    pub(crate) fn signer(&self) -> Signer {
        let key = self.1.public_key().as_ref();
        Signer(key.try_into().expect("a public key of Ed25519 has 32 bytes"))
    }

    /// The signature of a component with the manifest beside it, as text.
    pub(crate) fn sign(&self, component: &[u8], manifest: Option<&[u8]>) -> String {
        URL_SAFE_NO_PAD.encode(self.1.sign(&statement(component, manifest)))
    }
}

/// Whom each tenant believes; one that is not here believes nobody and takes everything.
#[derive(Clone, Debug, Default)]
pub(crate) struct Signers(HashMap<TenantId, Vec<Signer>>);

impl Signers {
    pub(crate) fn new(of: impl Iterator<Item = (TenantId, Vec<Signer>)>) -> Signers {
        Signers(of.filter(|(_, signers)| !signers.is_empty()).collect())
    }

    /// Whether a tenant wants signatures.
    pub(crate) fn are_wanted(&self, tenant: TenantId) -> bool {
        self.0.contains_key(&tenant)
    }

    /// Whether a tenant takes an upload.
    pub(crate) fn check(
        &self,
        tenant: TenantId,
        component: &[u8],
        manifest: Option<&[u8]>,
        signature: Option<&str>,
    ) -> Result<(), Error> {
        match (self.0.get(&tenant), signature) {
            (None, None) => Ok(()),
            (None, Some(_)) => {
                let text = "the tenant has no signers, so that nobody can say whose signature this is";
                Err(Error::new(Code::InvalidInput, text))
            }
            (Some(signers), signature) => Signers::believe(signers, component, manifest, signature),
        }
    }

    /// Whether one of these has signed an upload.
    pub(crate) fn believe(
        signers: &[Signer],
        component: &[u8],
        manifest: Option<&[u8]>,
        signature: Option<&str>,
    ) -> Result<(), Error> {
        let refused = |code, text: String| Err(Error::new(code, text));
        let Some(signature) = signature else {
            return refused(
                Code::Denied,
                "the tenant takes signed components only, and this one is not".to_owned(),
            );
        };
        let Some(bytes) = decode::<64>(signature.trim()) else {
            return refused(Code::InvalidInput, "a signature is 86 letters of base64".to_owned());
        };
        let statement = statement(component, manifest);
        let verifies =
            |signer: &Signer| UnparsedPublicKey::new(&ED25519, signer.0).verify(&statement, &bytes).is_ok();
        if signers.iter().any(verifies) {
            return Ok(());
        }
        let text =
            format!("the signature is of none of the tenant's {} signers, or of other bytes", signers.len());
        refused(Code::Denied, text)
    }
}

/// What is signed: the hash of a component, and of the manifest that is given beside it.
fn statement(component: &[u8], manifest: Option<&[u8]>) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key("keiko 2026 signature of a plugin");
    hasher.update(&(component.len() as u64).to_le_bytes()).update(component);
    hasher.update(&[u8::from(manifest.is_some())]).update(manifest.unwrap_or_default());
    hasher.finalize().into()
}

fn decode<const N: usize>(text: &str) -> Option<[u8; N]> {
    URL_SAFE_NO_PAD.decode(text).ok()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TENANT: TenantId = TenantId(1);

    fn secret(number: u8) -> Secret {
        Secret::of([number; 32]).unwrap()
    }

    #[test]
    fn only_what_a_signer_has_signed_is_taken_and_nothing_of_it_can_be_exchanged() {
        let (one, other, stranger) = (secret(1), secret(2), secret(3));
        let signers = Signers::new([(TENANT, vec![one.signer(), other.signer()])].into_iter());
        let code = |component: &[u8], manifest: Option<&[u8]>, signature: Option<&str>| {
            signers.check(TENANT, component, manifest, signature).map_err(|error| error.code)
        };
        for signer in [&one, &other] {
            let signature = signer.sign(b"component", Some(b"manifest"));
            assert_eq!(code(b"component", Some(b"manifest"), Some(&signature)), Ok(()));
            for (component, manifest) in [
                (&b"Component"[..], Some(&b"manifest"[..])),
                (b"component", Some(b"Manifest")),
                (b"component", None),
            ] {
                assert_eq!(code(component, manifest, Some(&signature)), Err(Code::Denied));
            }
        }
        let bare = one.sign(b"component", None);
        assert_eq!(code(b"component", None, Some(&bare)), Ok(()));
        assert_eq!(code(b"component", Some(b""), Some(&bare)), Err(Code::Denied));
        assert_eq!(code(b"component", None, Some(&stranger.sign(b"component", None))), Err(Code::Denied));
        assert_eq!(code(b"component", None, None), Err(Code::Denied));
        for bad in ["", "x", &bare[1..], &format!("{bare}A"), &"=".repeat(86)] {
            assert_eq!(code(b"component", None, Some(bad)), Err(Code::InvalidInput), "{bad}");
        }
    }

    #[test]
    fn who_believes_nobody_takes_everything_but_a_signature() {
        let signers = Signers::new([(TENANT, Vec::new())].into_iter());
        assert!(!signers.are_wanted(TENANT));
        assert!(signers.check(TENANT, b"component", None, None).is_ok());
        let error = signers.check(TENANT, b"component", None, Some(&secret(1).sign(b"component", None)));
        assert_eq!(error.unwrap_err().code, Code::InvalidInput);
    }

    #[test]
    fn keys_are_read_as_they_are_written() {
        let secret = Secret::new().unwrap();
        let again = Secret::read(&format!("{}\n", secret.text())).unwrap();
        assert_eq!(again.signer(), secret.signer());
        assert_eq!(secret.signer().to_string().parse(), Ok(secret.signer()));
        for bad in ["", "ed25519:", "ed25519:AAAA", "rsa:AAAA", &secret.signer().to_string()[8..]] {
            assert!(bad.parse::<Signer>().is_err(), "{bad}");
        }
        assert!(Secret::read("short").is_none());
    }
}
