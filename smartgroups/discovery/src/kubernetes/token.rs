//! Until when a token is good, if it says so.
//!
//! Service account tokens are JSON Web Tokens: three parts in base64url with dots between, of which the
//! second is a JSON object with the time of expiry. Nothing is verified: that is the server's business.
//! Here it is only known in time that a file is no longer renewed.

use std::time::{Duration, SystemTime};

use serde::Deserialize;

#[derive(Deserialize)]
struct Claims {
    exp: Option<f64>,
}

/// When a token expires, or `None` for one that does not say.
pub(crate) fn expiry(token: &str) -> Option<SystemTime> {
    let payload = token.trim().split('.').nth(1)?;
    let claims: Claims = serde_json::from_slice(&base64url(payload)?).ok()?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::try_from_secs_f64(claims.exp?).ok()?)
}

/// Bytes in base64url, padded or not.
fn base64url(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() * 3 / 4);
    let (mut bits, mut count) = (0_u32, 0);
    for byte in text.trim_end_matches('=').bytes() {
        let digit = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'-' | b'+' => 62,
            b'_' | b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(digit);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
            bits &= (1 << count) - 1;
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_that_says_when_it_expires_is_understood_and_any_other_is_not() {
        let at = |seconds| Some(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
        for (token, expected) in [
            ("e30.eyJleHAiOjE4MDAwMDAwMDB9.sig", at(1_800_000_000)), // {"exp":1800000000}
            ("e30.eyJleHAiOjE4MDAwMDAwMDB9.sig\n", at(1_800_000_000)),
            ("e30.eyJleHAiOiJuZXZlciJ9.sig", None), // {"exp":"never"}
            ("e30.eyJleHAiOi0xfQ.sig", None),       // {"exp":-1}
            ("e30.eyJleHAiOjFlMzAwfQ.sig", None),   // {"exp":1e300}
            ("e30.e30.sig", None),
            ("e30.$$$.sig", None),
            ("opaque", None),
            ("", None),
        ] {
            assert_eq!(expiry(token), expected, "{token}");
        }
    }
}
