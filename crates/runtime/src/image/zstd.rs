//! A zstd stream of several frames, as layers have them (RFC 8878): the decoder reads one frame, this one all.

use std::io::{self, BufRead, BufReader, Read};

use ruzstd::decoding::{FrameDecoder, StreamingDecoder};

pub(super) const MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// `0x184D2A50` to `0x184D2A5F`, little-endian, are frames to be skipped.
const SKIPPABLE: [u8; 3] = [0x2a, 0x4d, 0x18];
/// Window that a frame may ask for, in bytes; what `zstd --long` writes by default.
const MAX_WINDOW_BYTES: u64 = 128 << 20;

type Stream<R> = BufReader<R>;

enum State<R: Read> {
    Between(Stream<R>),
    Inside(Box<StreamingDecoder<Stream<R>, FrameDecoder>>),
    /// After the end or an error.
    Done,
}

/// Reads the plain bytes.
pub(super) struct Frames<R: Read>(State<R>);

impl<R: Read> Frames<R> {
    pub(super) fn new(stream: BufReader<R>) -> Self {
        Self(State::Between(stream))
    }
}

impl<R: Read> Read for Frames<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match std::mem::replace(&mut self.0, State::Done) {
                State::Done => return Ok(0),
                State::Between(mut stream) => {
                    if !next_frame(&mut stream)? {
                        return Ok(0);
                    }
                    let decoder = StreamingDecoder::new_with_max_window_size(stream, MAX_WINDOW_BYTES);
                    self.0 = State::Inside(Box::new(decoder.map_err(io::Error::other)?));
                }
                State::Inside(mut decoder) => {
                    let count = decoder.read(buffer)?;
                    if count == 0 && !buffer.is_empty() {
                        self.0 = State::Between(decoder.into_inner());
                        continue;
                    }
                    self.0 = State::Inside(decoder);
                    return Ok(count);
                }
            }
        }
    }
}

/// Skips to the next frame with content; false at the end.
fn next_frame<R: Read>(stream: &mut Stream<R>) -> io::Result<bool> {
    loop {
        if stream.fill_buf()?.is_empty() {
            return Ok(false);
        }
        if stream.buffer().get(1..4).is_none_or(|rest| rest != SKIPPABLE) {
            return Ok(true);
        }
        let mut header = [0; 8];
        stream.read_exact(&mut header)?;
        let length = u32::from_le_bytes([header[4], header[5], header[6], header[7]]);
        let skipped = io::copy(&mut stream.by_ref().take(length.into()), &mut io::sink())?;
        if skipped < length.into() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A frame that holds the bytes as they are (RFC 8878, raw block, single segment).
    fn frame(content: &[u8]) -> Vec<u8> {
        let size = u8::try_from(content.len()).unwrap();
        let block = (u32::from(size) << 3) | 1;
        [&MAGIC[..], &[0x20, size], &block.to_le_bytes()[..3], content].concat()
    }

    fn read(bytes: &[u8]) -> io::Result<String> {
        let mut text = String::new();
        Frames::new(BufReader::new(bytes)).read_to_string(&mut text).map(|_| text)
    }

    #[test]
    fn all_frames_are_read_and_skippable_ones_skipped() {
        let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"xyz"].concat();
        let all = [frame(b"one "), skippable.clone(), frame(b"two"), skippable.clone()].concat();
        assert_eq!(read(&all).unwrap(), "one two");
        assert!(read(&all[..all.len() - 1]).is_err(), "cut in a skippable frame");
        let cut = frame(b"three");
        assert!(read(&cut[..cut.len() - 2]).is_err());
        assert!(read(&[frame(b"a"), b"junk".to_vec()].concat()).is_err());
    }
}
