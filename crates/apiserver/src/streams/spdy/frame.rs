//! Frames of SPDY/3.1 as bytes: a pure decoder and encoder (SPDY protocol, draft 3.1, section 2.2 and 2.6).
//!
//! ```text
//!   control   1 | version 3 (15 bits) | type (16) | flags (8) | length (24) | payload
//!   data      0 | stream (31)                     | flags (8) | length (24) | payload
//! ```
//! Header blocks are one zlib stream per direction, primed with a dictionary that both sides know. Data comes out of the
//! decoder as it arrives: a frame may be 16 MiB long.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};

use super::dictionary;

/// Longest payload of a control frame that is read.
const CONTROL_LIMIT: usize = 64 << 10;
/// Longest block of headers once it is unpacked.
const HEADERS_LIMIT: usize = 64 << 10;
const FIN: u8 = 1;
const VERSION: u16 = 3;

/// Names in lower case, values.
pub(crate) type Headers = Vec<(String, String)>;

/// One frame, or a piece of a data frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Frame {
    /// Opens a stream.
    SynStream {
        stream: u32,
        headers: Headers,
        fin: bool,
    },
    /// Accepts a stream.
    SynReply {
        stream: u32,
        headers: Headers,
        fin: bool,
    },
    /// Ends a stream at once.
    Reset {
        stream: u32,
        status: u32,
    },
    Ping(u32),
    /// No more streams; `last` is the newest that was accepted.
    GoAway {
        last: u32,
        status: u32,
    },
    /// `stream` may send so many bytes more; stream 0 is the whole session.
    WindowUpdate {
        stream: u32,
        bytes: u32,
    },
    Data {
        stream: u32,
        bytes: Bytes,
        fin: bool,
    },
}

/// What arrives is no SPDY.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum FrameError {
    #[error("frame of version {0}")]
    Version(u16),
    #[error("malformed {0}")]
    Malformed(&'static str),
    #[error("{0} are too long")]
    TooLong(&'static str),
}

/// Takes bytes as they arrive, gives frames.
pub(crate) struct Decoder {
    buffer: BytesMut,
    /// The data frame whose payload is arriving.
    data: Option<Data>,
    inflate: Inflate,
}

struct Data {
    stream: u32,
    left: usize,
    fin: bool,
}

impl Decoder {
    pub(crate) fn new() -> Self {
        Self { buffer: BytesMut::new(), data: None, inflate: Inflate::new() }
    }

    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next frame; `None` until more has arrived. Frames without meaning here are left out.
    pub(crate) fn next(&mut self) -> Result<Option<Frame>, FrameError> {
        loop {
            if let Some(data) = &mut self.data {
                if self.buffer.is_empty() && data.left > 0 {
                    return Ok(None);
                }
                let bytes = self.buffer.split_to(self.buffer.len().min(data.left)).freeze();
                data.left -= bytes.len();
                let fin = data.fin && data.left == 0;
                let frame = Frame::Data { stream: data.stream, bytes, fin };
                if data.left == 0 {
                    self.data = None;
                }
                return Ok(Some(frame));
            }
            if self.buffer.len() < 8 {
                return Ok(None);
            }
            let word = u32::from_be_bytes(head(&self.buffer, 0));
            let length = u32::from_be_bytes(head(&self.buffer, 4));
            let (flags, length) = (self.buffer[4], (length & 0x00ff_ffff) as usize);
            if word >> 31 == 0 {
                self.buffer.advance(8);
                self.data = Some(Data { stream: word, left: length, fin: flags & FIN != 0 });
                continue;
            }
            let version = u16::from_be_bytes([self.buffer[0] & 0x7f, self.buffer[1]]);
            if version != VERSION {
                return Err(FrameError::Version(version));
            }
            if length > CONTROL_LIMIT {
                return Err(FrameError::TooLong("control frames"));
            }
            if self.buffer.len() < 8 + length {
                return Ok(None);
            }
            self.buffer.advance(8);
            let payload = self.buffer.split_to(length).freeze();
            if let Some(frame) = self.control(word as u16, flags & FIN != 0, payload)? {
                return Ok(Some(frame));
            }
        }
    }

    fn control(&mut self, kind: u16, fin: bool, mut payload: Bytes) -> Result<Option<Frame>, FrameError> {
        let words = payload.len() / 4;
        let mut word = |what| {
            if payload.len() < 4 {
                Err(FrameError::Malformed(what))
            } else {
                Ok(payload.get_u32() & 0x7fff_ffff)
            }
        };
        Ok(Some(match kind {
            1 => {
                let stream = word("SYN_STREAM")?;
                // the stream it belongs to, then priority and slot
                word("SYN_STREAM")?;
                if payload.len() < 2 {
                    return Err(FrameError::Malformed("SYN_STREAM"));
                }
                payload.advance(2);
                Frame::SynStream { stream, headers: self.inflate.headers(&payload)?, fin }
            }
            2 => {
                let stream = word("SYN_REPLY")?;
                Frame::SynReply { stream, headers: self.inflate.headers(&payload)?, fin }
            }
            3 if words == 2 => Frame::Reset { stream: word("RST_STREAM")?, status: word("RST_STREAM")? },
            6 if words == 1 => Frame::Ping(payload.get_u32()),
            7 if words == 2 => Frame::GoAway { last: word("GOAWAY")?, status: word("GOAWAY")? },
            8 => {
                word("HEADERS")?;
                // Nobody needs them, but the ones after them are packed with their help.
                self.inflate.headers(&payload)?;
                return Ok(None);
            }
            9 if words == 2 => {
                Frame::WindowUpdate { stream: word("WINDOW_UPDATE")?, bytes: word("WINDOW_UPDATE")? }
            }
            3 | 6 | 7 | 9 => return Err(FrameError::Malformed("control frame")),
            _ => return Ok(None),
        }))
    }
}

fn head(buffer: &[u8], at: usize) -> [u8; 4] {
    [buffer[at], buffer[at + 1], buffer[at + 2], buffer[at + 3]]
}

/// Unpacks header blocks.
struct Inflate {
    raw: Decompress,
    begun: bool,
}

impl Inflate {
    fn new() -> Self {
        Self { raw: Decompress::new(false), begun: false }
    }

    fn headers(&mut self, mut packed: &[u8]) -> Result<Headers, FrameError> {
        if !self.begun {
            self.begun = true;
            // A zlib header, with the dictionary's checksum when it is used.
            let used = packed.get(1).is_some_and(|flags| flags & 0x20 != 0);
            packed = packed.get(if used { 6 } else { 2 }..).ok_or(FrameError::Malformed("headers"))?;
            // Unpacking a stored block that holds the dictionary is the same as being told the dictionary.
            let words = dictionary::bytes();
            let length = u16::try_from(words.len()).expect("the dictionary is short");
            let mut block = vec![0];
            block.extend(length.to_le_bytes());
            block.extend((!length).to_le_bytes());
            block.extend(&words);
            self.unpack(&block)?;
        }
        parse(&self.unpack(packed)?)
    }

    fn unpack(&mut self, mut packed: &[u8]) -> Result<Vec<u8>, FrameError> {
        let mut out = Vec::with_capacity(4 << 10);
        loop {
            let before = (self.raw.total_in(), out.len());
            let unpacked = self.raw.decompress_vec(packed, &mut out, FlushDecompress::Sync);
            unpacked.map_err(|_| FrameError::Malformed("headers"))?;
            let taken = usize::try_from(self.raw.total_in() - before.0).expect("no more than was given");
            packed = &packed[taken..];
            if out.len() < out.capacity() {
                match (packed.is_empty(), taken == 0 && out.len() == before.1) {
                    // Room is left: nothing more comes of what was given.
                    (true, _) => return Ok(out),
                    (false, true) => return Err(FrameError::Malformed("headers")),
                    (false, false) => continue,
                }
            }
            if out.len() >= HEADERS_LIMIT {
                return Err(FrameError::TooLong("headers"));
            }
            out.reserve(out.len());
        }
    }
}

fn parse(mut block: &[u8]) -> Result<Headers, FrameError> {
    let wrong = FrameError::Malformed("headers");
    let number = |block: &mut &[u8]| if block.len() < 4 { None } else { Some(block.get_u32() as usize) };
    let text = |block: &mut &[u8]| {
        let length = number(block)?;
        let (text, rest) = block.split_at_checked(length)?;
        *block = rest;
        Some(String::from_utf8_lossy(text).into_owned())
    };
    let Some(count) = number(&mut block) else { return Err(wrong) };
    let mut headers = Headers::new();
    for _ in 0..count {
        match (text(&mut block), text(&mut block)) {
            (Some(name), Some(value)) => headers.push((name.to_ascii_lowercase(), value)),
            _ => return Err(wrong),
        }
    }
    Ok(headers)
}

/// Turns frames into bytes.
pub(crate) struct Encoder {
    deflate: Compress,
}

impl Encoder {
    pub(crate) fn new() -> Self {
        Self { deflate: Compress::new(Compression::fast(), true) }
    }

    /// Appends a frame.
    pub(crate) fn encode(&mut self, frame: &Frame, out: &mut BytesMut) {
        match frame {
            Frame::SynStream { stream, headers, fin } => {
                let block = self.pack(headers);
                control(1, u8::from(*fin), block.len() + 10, out);
                out.put_u32(*stream);
                out.put_u32(0);
                out.put_u16(0);
                out.put_slice(&block);
            }
            Frame::SynReply { stream, headers, fin } => {
                let block = self.pack(headers);
                control(2, u8::from(*fin), block.len() + 4, out);
                out.put_u32(*stream);
                out.put_slice(&block);
            }
            Frame::Reset { stream, status } => pair(3, *stream, *status, out),
            Frame::Ping(id) => {
                control(6, 0, 4, out);
                out.put_u32(*id);
            }
            Frame::GoAway { last, status } => pair(7, *last, *status, out),
            Frame::WindowUpdate { stream, bytes } => pair(9, *stream, *bytes, out),
            Frame::Data { stream, bytes, fin } => {
                out.put_u32(*stream);
                put_length(u8::from(*fin), bytes.len(), out);
                out.put_slice(bytes);
            }
        }
    }

    fn pack(&mut self, headers: &Headers) -> Vec<u8> {
        let mut block = BytesMut::new();
        let length = |text: &str| u32::try_from(text.len()).expect("headers are short");
        block.put_u32(u32::try_from(headers.len()).expect("headers are few"));
        for text in headers.iter().flat_map(|(name, value)| [name, value]) {
            block.put_u32(length(text));
            block.put_slice(text.as_bytes());
        }
        let (mut rest, mut out) = (&block[..], Vec::with_capacity(block.len() + 64));
        loop {
            let before = self.deflate.total_in();
            self.deflate
                .compress_vec(rest, &mut out, FlushCompress::Sync)
                .expect("packing into memory does not fail");
            rest =
                &rest[usize::try_from(self.deflate.total_in() - before).expect("no more than was given")..];
            if rest.is_empty() && out.len() < out.capacity() {
                return out;
            }
            out.reserve(64);
        }
    }
}

fn pair(kind: u16, first: u32, second: u32, out: &mut BytesMut) {
    control(kind, 0, 8, out);
    out.put_u32(first);
    out.put_u32(second);
}

fn control(kind: u16, flags: u8, length: usize, out: &mut BytesMut) {
    out.put_u16(0x8000 | VERSION);
    out.put_u16(kind);
    put_length(flags, length, out);
}

fn put_length(flags: u8, length: usize, out: &mut BytesMut) {
    let length = u32::try_from(length).expect("frames are short");
    debug_assert!(length < 1 << 24, "a length has 24 bits");
    out.put_u32(u32::from(flags) << 24 | length);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn headers() -> impl Strategy<Value = Headers> {
        let word = prop_oneof!["[a-z]{1,9}", Just("streamtype".to_owned())];
        proptest::collection::vec((word, "[ -~]{0,300}"), 0..6)
    }

    fn frame() -> impl Strategy<Value = Frame> {
        let stream = 1u32..0x7fff_ffff;
        let data = proptest::collection::vec(any::<u8>(), 0..300).prop_map(Bytes::from);
        prop_oneof![
            (stream.clone(), headers(), any::<bool>()).prop_map(|(stream, headers, fin)| Frame::SynStream {
                stream,
                headers,
                fin
            }),
            (stream.clone(), headers(), any::<bool>()).prop_map(|(stream, headers, fin)| Frame::SynReply {
                stream,
                headers,
                fin
            }),
            (stream.clone(), 1u32..12).prop_map(|(stream, status)| Frame::Reset { stream, status }),
            any::<u32>().prop_map(Frame::Ping),
            (stream.clone(), 0u32..3).prop_map(|(last, status)| Frame::GoAway { last, status }),
            (stream.clone(), 1u32..0x7fff_ffff)
                .prop_map(|(stream, bytes)| Frame::WindowUpdate { stream, bytes }),
            (stream, data, any::<bool>()).prop_map(|(stream, bytes, fin)| Frame::Data { stream, bytes, fin }),
        ]
    }

    /// Pieces of one data frame put together again.
    fn whole(frames: Vec<Frame>) -> Vec<Frame> {
        let mut out: Vec<Frame> = Vec::new();
        for frame in frames {
            if let Frame::Data { stream, bytes, fin } = &frame
                && let Some(Frame::Data { stream: before, bytes: first, fin: ended }) = out.last_mut()
                && stream == before
                && !*ended
            {
                *first = [&first[..], bytes].concat().into();
                *ended = *fin;
                continue;
            }
            out.push(frame);
        }
        out
    }

    proptest! {
        #[test]
        fn frames_come_as_they_went(frames in proptest::collection::vec(frame(), 0..12), cut in 1usize..40) {
            let (mut encoder, mut bytes) = (Encoder::new(), BytesMut::new());
            frames.iter().for_each(|frame| encoder.encode(frame, &mut bytes));
            let (mut decoder, mut out) = (Decoder::new(), Vec::new());
            for piece in bytes.chunks(cut) {
                decoder.push(piece);
                while let Some(frame) = decoder.next().unwrap() {
                    out.push(frame);
                }
            }
            prop_assert_eq!(whole(out), whole(frames));
        }

        #[test]
        fn noise_never_panics(noise in proptest::collection::vec(any::<u8>(), 0..200), control in any::<bool>()) {
            let mut decoder = Decoder::new();
            if control {
                decoder.push(&[0x80, 3, 0, 1, 0, 0, 0, 100]);
            }
            decoder.push(&noise);
            while let Ok(Some(_)) = decoder.next() {}
        }
    }

    #[test]
    fn headers_that_were_packed_with_the_dictionary_are_read() {
        // `streamtype: error` twice, as Go's compress/zlib packs it when it is given the dictionary.
        let first: &[u8] = &[
            0x78, 0xf9, 0xe3, 0xc6, 0xa7, 0xc2, 0x62, 0x60, 0x60, 0x60, 0x04, 0xa7, 0xb3, 0x92, 0xa2, 0xd4,
            0xc4, 0x5c, 0x68, 0x51, 0xc2, 0x9a, 0x0a, 0x0a, 0x68, 0x00, 0x00, 0x00, 0x00, 0xff, 0xff,
        ];
        let second: &[u8] = &[0xc2, 0x23, 0x05, 0x00, 0x00, 0x00, 0xff, 0xff];
        let mut decoder = Decoder::new();
        for (stream, packed) in [(1, first), (3, second)] {
            let length = u8::try_from(packed.len() + 10).unwrap();
            decoder.push(&[0x80, 3, 0, 1, 0, 0, 0, length, 0, 0, 0, stream, 0, 0, 0, 0, 0, 0]);
            decoder.push(packed);
            let headers = vec![("streamtype".to_owned(), "error".to_owned())];
            let stream = u32::from(stream);
            assert_eq!(decoder.next(), Ok(Some(Frame::SynStream { stream, headers, fin: false })));
        }
    }

    #[test]
    fn a_bomb_of_headers_is_refused() {
        let (mut encoder, mut bytes) = (Encoder::new(), BytesMut::new());
        let headers = vec![("a".to_owned(), "x".repeat(HEADERS_LIMIT))];
        encoder.encode(&Frame::SynStream { stream: 1, headers, fin: false }, &mut bytes);
        let mut decoder = Decoder::new();
        decoder.push(&bytes);
        assert_eq!(decoder.next(), Err(FrameError::TooLong("headers")));
    }
}
