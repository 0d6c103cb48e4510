//! The unlock key as text, `SWMKEY-1-` and base64 without padding: SwarmKit's form.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use zeroize::Zeroizing;

/// The text of a key.
pub(crate) fn text(key: &[u8]) -> Zeroizing<String> {
    let encoded = Zeroizing::new(STANDARD_NO_PAD.encode(key));
    Zeroizing::new(format!("SWMKEY-1-{}", encoded.as_str()))
}
