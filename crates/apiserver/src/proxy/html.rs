//! Links of proxied pages: those that start at the server's root get the proxy's path in front.

use bytes::Bytes;

/// Attributes that hold links (HTML standard, index of attributes).
const LINKS: [&str; 8] = ["action", "background", "cite", "formaction", "href", "longdesc", "poster", "src"];
/// A tag that is longer than this is passed on as it is.
const LONGEST_TAG: usize = 64 << 10;

/// Changes a page while it streams by: text passes at once, a tag when it is whole.
pub(super) struct Relinker {
    prefix: String,
    /// From `<` on; empty outside tags.
    tag: Vec<u8>,
}

impl Relinker {
    pub(super) fn new(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned(), tag: Vec::new() }
    }

    /// What can be sent on after this piece.
    pub(super) fn push(&mut self, piece: &[u8]) -> Bytes {
        let mut out = Vec::with_capacity(piece.len());
        for &byte in piece {
            if self.tag.is_empty() && byte != b'<' {
                out.push(byte);
                continue;
            }
            self.tag.push(byte);
            if byte == b'>' {
                out.extend(relink(&self.tag, &self.prefix));
                self.tag.clear();
            } else if self.tag.len() > LONGEST_TAG {
                out.append(&mut self.tag);
            }
        }
        out.into()
    }

    /// What is left at the end.
    pub(super) fn finish(&mut self) -> Bytes {
        std::mem::take(&mut self.tag).into()
    }
}

/// A tag with the prefix in front of the links that need it.
fn relink(tag: &[u8], prefix: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(tag.len() + prefix.len());
    let mut rest = tag;
    while let Some(at) = rest.iter().position(|byte| *byte == b'=') {
        let (before, after) = rest.split_at(at + 1);
        out.extend(before);
        rest = after;
        let quoted = rest.first().filter(|byte| matches!(byte, b'"' | b'\''));
        let value = &rest[usize::from(quoted.is_some())..];
        if names_link(before) && from_root(value, prefix) {
            out.extend(quoted);
            out.extend(prefix.as_bytes());
            rest = value;
        }
    }
    out.extend(rest);
    out
}

/// Whether text before a value ends with the name of such an attribute and `=`.
fn names_link(before: &[u8]) -> bool {
    let text = String::from_utf8_lossy(before);
    let Some(text) = text.strip_suffix('=') else { return false };
    let name = text.rsplit(|c: char| c.is_ascii_whitespace() || c == '/').next().unwrap_or_default();
    name.len() < text.len() && LINKS.iter().any(|link| name.eq_ignore_ascii_case(link))
}

/// Whether a link starts at the root of the same server and does not lead through the proxy yet.
fn from_root(value: &[u8], prefix: &str) -> bool {
    value.starts_with(b"/") && !value.starts_with(b"//") && !value.starts_with(prefix.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(pieces: &[&str]) -> String {
        let mut relinker = Relinker::new("/p");
        let mut out: Vec<u8> = Vec::new();
        for piece in pieces {
            out.extend(relinker.push(piece.as_bytes()));
        }
        out.extend(relinker.finish());
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn links_from_the_root_lead_through_the_proxy() {
        for (page, want) in [
            ("<a href=\"/x\">t</a>", "<a href=\"/p/x\">t</a>"),
            ("<IMG class=a SRC='/i.png'>", "<IMG class=a SRC='/p/i.png'>"),
            ("<form action=/go method=post>", "<form action=/p/go method=post>"),
            ("<a href=\"x\" title=\"/t\">", "<a href=\"x\" title=\"/t\">"),
            ("<a href=\"//other/x\">", "<a href=\"//other/x\">"),
            ("<a href=\"/p/x\">", "<a href=\"/p/x\">"),
            ("1 < 2 href=\"/x\"", "1 < 2 href=\"/x\""),
        ] {
            assert_eq!(whole(&[page]), want);
        }
        assert_eq!(whole(&["text <a hr", "ef='/", "x'", "> more"]), "text <a href='/p/x'> more");
    }
}
