//! What both sides of SPDY/3 take as said before the first header block (section 2.6.10.1 of the protocol's draft).

/// Each with its length in front.
const WORDS: &str = "options | head | post | put | delete | trace | accept | accept-charset | accept-encoding | \
    accept-language | accept-ranges | age | allow | authorization | cache-control | connection | \
    content-base | content-encoding | content-language | content-length | content-location | content-md5 \
    | content-range | content-type | date | etag | expect | expires | from | host | if-match | \
    if-modified-since | if-none-match | if-range | if-unmodified-since | last-modified | location | \
    max-forwards | pragma | proxy-authenticate | proxy-authorization | range | referer | retry-after | \
    server | te | trailer | transfer-encoding | upgrade | user-agent | vary | via | warning | \
    www-authenticate | method | get | status | 200 OK | version | HTTP/1.1 | url | public | set-cookie | \
    keep-alive | origin";

/// Without lengths: status codes, dates, media types.
const TAIL: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505203 No\
    n-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized40\
    3 Forbidden404 Not Found500 Internal Server Error501 Not Implemented503 Service UnavailableJan F\
    eb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunk\
    ed,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,text\
    /javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.";

/// The dictionary.
pub(super) fn bytes() -> Vec<u8> {
    let mut out = Vec::new();
    for word in WORDS.split(" | ") {
        out.extend(u32::try_from(word.len()).expect("words are short").to_be_bytes());
        out.extend(word.as_bytes());
    }
    out.extend(TAIL.as_bytes());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_the_one_on_the_wire() {
        let (low, high) = bytes().iter().fold((1u32, 0u32), |(low, high), byte| {
            let low = (low + u32::from(*byte)) % 65521;
            (low, (high + low) % 65521)
        });
        assert_eq!(high << 16 | low, 0xe3c6_a7c2);
    }
}
