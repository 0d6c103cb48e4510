//! The CSV of long flag values: `key=value,switch,"key=a value, with a comma"`.

/// The fields of a text, with their values where they have one; keys in lower case.
///
/// # Errors
/// What is wrong with the text.
pub fn fields(text: &str) -> Result<Vec<(String, Option<String>)>, String> {
    let mut parts = Vec::new();
    let mut part = String::new();
    let mut quoted = false;
    for c in text.chars() {
        match c {
            '"' => quoted = !quoted,
            ',' if !quoted => parts.push(std::mem::take(&mut part)),
            c => part.push(c),
        }
    }
    parts.push(part);
    if quoted {
        return Err("a quote is not closed".to_owned());
    }
    let split = |part: String| match part.split_once('=') {
        Some((key, value)) => (key.trim().to_ascii_lowercase(), Some(value.to_owned())),
        None => (part.trim().to_ascii_lowercase(), None),
    };
    let fields: Vec<_> = parts.into_iter().map(split).collect();
    if fields.iter().any(|(key, _)| key.is_empty()) {
        return Err("a field is empty".to_owned());
    }
    Ok(fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_with_quotes() {
        let got = fields("type=tmpfs,\"options=a,b\",ro").unwrap();
        let want = [
            ("type", Some("tmpfs")),
            ("options", Some("a,b")),
            ("ro", None),
        ];
        let want: Vec<_> = want
            .map(|(k, v)| (k.to_owned(), v.map(str::to_owned)))
            .into();
        assert_eq!(got, want);
        assert!(fields("a=\"b").is_err());
        assert!(fields("a=1,,b=2").is_err());
    }
}
