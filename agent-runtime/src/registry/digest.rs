//! Digests: `sha256:` and the hexadecimal digits of what they name.

use std::fmt::Write as _;

use ring::digest::{Algorithm, SHA256, SHA384, SHA512};

/// `sha256:` and the hex digits.
pub(crate) fn digest(data: &[u8]) -> String {
    named("sha256", ring::digest::digest(&SHA256, data).as_ref())
}

/// `algorithm:` and the hex digits of a hash.
pub(crate) fn named(algorithm: &str, hash: &[u8]) -> String {
    let mut text = String::with_capacity(algorithm.len() + 1 + 2 * hash.len());
    text.push_str(algorithm);
    text.push(':');
    for byte in hash {
        // Writing to a string can't fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

fn algorithm(digest: &str) -> Option<(&'static str, &'static Algorithm, &str)> {
    let (name, hex) = digest.split_once(':')?;
    match name {
        "sha256" => Some(("sha256", &SHA256, hex)),
        "sha384" => Some(("sha384", &SHA384, hex)),
        "sha512" => Some(("sha512", &SHA512, hex)),
        _ => None,
    }
}

/// True for a digest in its one form. What is not could lead elsewhere as part of a path.
pub(crate) fn is_digest(text: &str) -> bool {
    algorithm(text).is_some_and(|(_, algorithm, hex)| {
        hex.len() == 2 * algorithm.output_len()
            && hex
                .bytes()
                .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    })
}

/// True where the digest names this data.
pub(crate) fn matches(digest: &str, data: &[u8]) -> bool {
    algorithm(digest).is_some_and(|(name, algorithm, _)| {
        named(name, ring::digest::digest(algorithm, data).as_ref()) == digest
    })
}

/// The digest of data that is read in pieces.
pub(crate) fn sha256_of(
    size: u64,
    mut read: impl FnMut(u64, &mut [u8]) -> std::io::Result<()>,
) -> std::io::Result<String> {
    const PIECE: u64 = 1 << 20;
    let mut context = ring::digest::Context::new(&SHA256);
    let mut piece = vec![0; usize::try_from(PIECE.min(size)).unwrap_or_default()];
    let mut at = 0;
    while at < size {
        let length = usize::try_from(PIECE.min(size - at)).unwrap_or_default();
        piece.truncate(length);
        read(at, &mut piece)?;
        context.update(&piece);
        at += length as u64;
    }
    Ok(named("sha256", context.finish().as_ref()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_has_one_form() {
        let empty = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(digest(b""), empty);
        assert!(is_digest(empty) && matches(empty, b""));
        assert!(!matches(empty, b"x"));
        let upper = empty.to_uppercase();
        for text in ["", "sha256:", "sha256:../../x", "md5:00", upper.as_str()] {
            assert!(!is_digest(text), "{text}");
        }
    }
}
