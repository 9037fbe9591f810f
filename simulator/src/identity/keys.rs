//! The signing key: one for the whole process, made when first needed.

use std::sync::OnceLock;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use ring::{
    rand::SystemRandom,
    signature::{
        ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair,
        RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents, UnparsedPublicKey,
    },
};
use serde_json::{Value, json};

/// An ES256 key. Clients of Entra ID do not verify access tokens, so the algorithm is ours to choose; Resource
/// Manager here does verify them.
pub(crate) struct Keys {
    pair: EcdsaKeyPair,
    random: SystemRandom,
}

const KEY_ID: &str = "simulator";

/// The key of this process.
pub(crate) fn shared() -> &'static Keys {
    static KEYS: OnceLock<Keys> = OnceLock::new();
    KEYS.get_or_init(|| {
        let random = SystemRandom::new();
        let document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random);
        let pair = document.and_then(|d| {
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, d.as_ref(), &random)
                .map_err(|_| ring::error::Unspecified)
        });
        match pair {
            Ok(pair) => Keys { pair, random },
            Err(_) => unreachable!("the system's random number generator failed"),
        }
    })
}

impl Keys {
    /// A compact JWT over these claims; empty if the system has no randomness left.
    pub(crate) fn sign(&self, claims: &Value) -> String {
        let header = json!({"alg": "ES256", "typ": "JWT", "kid": KEY_ID});
        let body = format!("{}.{}", encode(&header), encode(claims));
        match self.pair.sign(&self.random, body.as_bytes()) {
            Ok(signature) => format!("{body}.{}", BASE64.encode(signature)),
            Err(_) => String::new(),
        }
    }

    /// The claims of a token that this process has signed.
    pub(crate) fn verify(&self, token: &str) -> Option<Value> {
        let (body, signature) = token.rsplit_once('.')?;
        let signature = BASE64.decode(signature).ok()?;
        let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, self.pair.public_key().as_ref());
        key.verify(body.as_bytes(), &signature).ok()?;
        claims_of(body)
    }

    pub(crate) fn jwks(&self) -> Value {
        let point = self.pair.public_key().as_ref();
        let (x, y) = (&point[1..33], &point[33..65]);
        json!({"keys": [{"kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": KEY_ID,
                         "x": BASE64.encode(x), "y": BASE64.encode(y)}]})
    }
}

fn encode(value: &Value) -> String {
    BASE64.encode(value.to_string())
}

/// The claims of `header.claims`, unverified.
pub(crate) fn claims_of(body: &str) -> Option<Value> {
    let claims = body.split('.').nth(1)?;
    serde_json::from_slice(&BASE64.decode(claims.trim_end_matches('=')).ok()?).ok()
}

/// Is the token signed by one of another issuer's keys?
pub(crate) fn signed_by(token: &str, jwks: &Value) -> bool {
    let Some((body, signature)) = token.rsplit_once('.') else { return false };
    let Ok(signature) = BASE64.decode(signature) else { return false };
    let part = |key: &Value, name: &str| BASE64.decode(key[name].as_str().unwrap_or("")).unwrap_or_default();
    jwks["keys"].as_array().into_iter().flatten().any(|key| match key["kty"].as_str() {
        Some("RSA") => RsaPublicKeyComponents { n: part(key, "n"), e: part(key, "e") }
            .verify(&RSA_PKCS1_2048_8192_SHA256, body.as_bytes(), &signature)
            .is_ok(),
        Some("EC") => {
            let point = [vec![4], part(key, "x"), part(key, "y")].concat();
            UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point)
                .verify(body.as_bytes(), &signature)
                .is_ok()
        }
        Some(_) | None => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_token_does_not_verify() {
        let token = shared().sign(&json!({"appid": "a"}));
        assert_eq!(shared().verify(&token).unwrap()["appid"], "a");
        let forged = format!("{}.{}", encode(&json!({"alg": "ES256"})), encode(&json!({"appid": "b"})));
        let signature = token.rsplit_once('.').unwrap().1;
        assert!(shared().verify(&format!("{forged}.{signature}")).is_none());
        assert!(signed_by(&token, &shared().jwks()));
        assert!(!signed_by(&format!("{forged}.{signature}"), &shared().jwks()));
    }
}
