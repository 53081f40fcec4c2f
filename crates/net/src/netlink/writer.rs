//! Writing messages and reading attributes. Every length is patched when its part is complete.

const HEADER_BYTES: usize = 16;
const NESTED: u16 = 0x8000;
const TYPE_MASK: u16 = 0x3fff;

/// Flags of a request (linux/netlink.h).
pub(crate) mod flags {
    pub(crate) const REQUEST: u16 = 0x001;
    pub(crate) const ACK: u16 = 0x004;
    pub(crate) const DUMP: u16 = 0x300;
    pub(crate) const REPLACE: u16 = 0x100;
    pub(crate) const EXCLUSIVE: u16 = 0x200;
    pub(crate) const CREATE: u16 = 0x400;
}

/// A buffer of one or more netlink messages; sequence numbers count from 0.
#[derive(Default)]
pub(crate) struct Writer {
    bytes: Vec<u8>,
    messages: u32,
    /// where the last message begins
    last: usize,
}

impl Writer {
    /// Appends one message. `header` is the family header that follows the netlink header.
    pub(crate) fn message(
        &mut self,
        kind: u16,
        flags: u16,
        header: &[u8],
        body: impl FnOnce(&mut Message<'_>),
    ) {
        let start = self.bytes.len();
        self.last = start;
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&(flags | flags::REQUEST).to_ne_bytes());
        self.bytes.extend_from_slice(&self.messages.to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(header);
        pad(&mut self.bytes);
        body(&mut Message { bytes: &mut self.bytes });
        let length = u32::try_from(self.bytes.len() - start).expect("a message stays far below 4 GiB");
        self.bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
        self.messages += 1;
    }

    /// Asks for an acknowledgement of the message written last.
    pub(crate) fn acknowledge_last(&mut self) {
        let at = self.last + 6;
        let old = u16::from_ne_bytes([self.bytes[at], self.bytes[at + 1]]);
        self.bytes[at..at + 2].copy_from_slice(&(old | flags::ACK).to_ne_bytes());
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(crate) fn messages(&self) -> u32 {
        self.messages
    }
}

/// The attributes of the message (or nest) being written.
pub(crate) struct Message<'a> {
    bytes: &'a mut Vec<u8>,
}

impl Message<'_> {
    pub(crate) fn raw(&mut self, kind: u16, value: &[u8]) {
        let length = u16::try_from(4 + value.len()).expect("attribute values are below 64 KiB");
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        pad(self.bytes);
    }

    /// A zero-terminated string.
    pub(crate) fn text(&mut self, kind: u16, value: &str) {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.raw(kind, &bytes);
    }

    /// A number in the machine's order, as rtnetlink wants.
    pub(crate) fn native(&mut self, kind: u16, value: u32) {
        self.raw(kind, &value.to_ne_bytes());
    }

    /// A number in network order, as nfnetlink wants.
    pub(crate) fn network(&mut self, kind: u16, value: u32) {
        self.raw(kind, &value.to_be_bytes());
    }

    pub(crate) fn nest(&mut self, kind: u16, body: impl FnOnce(&mut Message<'_>)) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 2]);
        self.bytes.extend_from_slice(&(kind | NESTED).to_ne_bytes());
        body(&mut Message { bytes: self.bytes });
        let length = u16::try_from(self.bytes.len() - start).expect("callers keep nests below 64 KiB");
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
    }

    /// Family header inside a nest (a veth's peer starts with one).
    pub(crate) fn header(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        pad(self.bytes);
    }
}

fn pad(bytes: &mut Vec<u8>) {
    while !bytes.len().is_multiple_of(4) {
        bytes.push(0);
    }
}

/// The (type, value) pairs of an attribute list; stops at the first malformed one.
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let header = bytes.get(..4)?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & TYPE_MASK;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// Splits a received datagram into (type, sequence, body).
pub(crate) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (u16, u32, &[u8])> {
    std::iter::from_fn(move || {
        let header = bytes.get(..HEADER_BYTES)?;
        let length = u32::from_ne_bytes(header[..4].try_into().expect("four bytes")) as usize;
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        let sequence = u32::from_ne_bytes(header[8..12].try_into().expect("four bytes"));
        let body = bytes.get(HEADER_BYTES..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, sequence, body))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let mut w = Writer::default();
        w.message(20, flags::ACK, &[1, 2, 3, 4], |m| {
            m.text(1, "ab");
            m.nest(2, |n| n.network(3, 7));
        });
        w.message(21, 0, &[], |_| {});
        w.acknowledge_last();
        let all: Vec<_> = messages(w.bytes()).collect();
        assert_eq!((all[0].0, all[0].1, all[1].0, all[1].1), (20, 0, 21, 1));
        let attrs: Vec<_> = attributes(&all[0].2[4..]).collect();
        assert_eq!(attrs[0], (1, &b"ab\0"[..]));
        assert_eq!(attributes(attrs[1].1).collect::<Vec<_>>(), vec![(3, &[0, 0, 0, 7][..])]);
        assert_eq!(w.bytes().len() % 4, 0);
    }

    #[test]
    fn cut_input_ends_the_list() {
        assert_eq!(attributes(&[9, 0, 1, 0, 0]).count(), 0);
        assert_eq!(messages(&[200, 0, 0, 0]).count(), 0);
    }
}
