//! Looks at a signed question as STS does, by the definition of Signature Version 4 and with nothing of
//! the SDK.

use ring::{digest, hmac};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn keyed(key: &[u8], message: &str) -> Vec<u8> {
    let key = hmac::Key::new(hmac::HMAC_SHA256, key);
    hmac::sign(&key, message.as_bytes()).as_ref().to_vec()
}

/// The signature of a question of which the query is `query`, sent with these headers (lower case,
/// sorted), all of which are signed.
pub(crate) fn of_query(
    query: &[(String, String)],
    headers: &[(&str, &str)],
    secret: &str,
    scope: &str,
    date: &str,
) -> String {
    let mut pairs: Vec<String> = query
        .iter()
        .filter(|(name, _)| name != "X-Amz-Signature")
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    pairs.sort_unstable();
    let lines: String = headers.iter().map(|(name, value)| format!("{name}:{value}\n")).collect();
    let names: Vec<&str> = headers.iter().map(|(name, _)| *name).collect();
    let nothing = hex(digest::digest(&digest::SHA256, b"").as_ref());
    let request = format!("GET\n/\n{}\n{lines}\n{}\n{nothing}", pairs.join("&"), names.join(";"));
    let hashed = hex(digest::digest(&digest::SHA256, request.as_bytes()).as_ref());
    let text = format!("AWS4-HMAC-SHA256\n{date}\n{scope}\n{hashed}");
    let key =
        scope.split('/').fold(format!("AWS4{secret}").into_bytes(), |key, part| keyed(&key, part));
    hex(&keyed(&key, &text))
}
