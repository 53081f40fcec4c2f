//! The wire format: tags, numbers, lengths (Protocol Buffers, "Encoding").

/// A field's value on the wire.
pub(super) enum Wire<'a> {
    Varint(u64),
    Fixed64(u64),
    Fixed32(u32),
    Bytes(&'a [u8]),
}

/// The fields of a message in order.
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Fields<'a> {
    pub(super) fn varint(&mut self) -> Result<u64, String> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = self.0.split_first().ok_or("truncated protobuf")?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err("malformed protobuf number".into())
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], String> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or("truncated protobuf")?;
        self.0 = rest;
        Ok(taken)
    }

    fn field(&mut self) -> Result<(u32, Wire<'a>), String> {
        let tag = self.varint()?;
        let number = u32::try_from(tag >> 3).map_err(|_| "malformed protobuf tag")?;
        let wire = match tag & 7 {
            0 => Wire::Varint(self.varint()?),
            1 => {
                Wire::Fixed64(u64::from_le_bytes(self.take(8)?.try_into().map_err(|_| "truncated protobuf")?))
            }
            2 => {
                let length = usize::try_from(self.varint()?).map_err(|_| "truncated protobuf")?;
                Wire::Bytes(self.take(length)?)
            }
            5 => {
                Wire::Fixed32(u32::from_le_bytes(self.take(4)?.try_into().map_err(|_| "truncated protobuf")?))
            }
            _ => return Err("unknown protobuf wire type".into()),
        };
        Ok((number, wire))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u32, Wire<'a>), String>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.0 = &[];
        }
        Some(field)
    }
}

/// The first field of a number that is text or a message.
pub(super) fn first_bytes(message: &[u8], number: u32) -> Result<Option<&[u8]>, String> {
    for field in Fields(message) {
        if let (found, Wire::Bytes(content)) = field?
            && found == number
        {
            return Ok(Some(content));
        }
    }
    Ok(None)
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    out.push(value.to_le_bytes()[0]);
}

/// A number or boolean.
pub(super) fn varint(out: &mut Vec<u8>, number: u32, value: u64) {
    put_varint(out, u64::from(number) << 3);
    put_varint(out, value);
}

/// A float of 64 bits.
pub(super) fn fixed64(out: &mut Vec<u8>, number: u32, bits: u64) {
    put_varint(out, u64::from(number) << 3 | 1);
    out.extend_from_slice(&bits.to_le_bytes());
}

/// Tag and length of text, bytes or a message.
pub(super) fn header(out: &mut Vec<u8>, number: u32, length: usize) {
    put_varint(out, u64::from(number) << 3 | 2);
    put_varint(out, length as u64);
}

/// Text or bytes.
pub(super) fn bytes(out: &mut Vec<u8>, number: u32, content: &[u8]) {
    header(out, number, content.len());
    out.extend_from_slice(content);
}

/// A nested message that is being written: where its tag and its content begin.
pub(super) struct Open {
    tag: usize,
    content: usize,
}

/// Begins a nested message; its length takes one byte until [`close`] knows better.
pub(super) fn open(out: &mut Vec<u8>, number: u32) -> Open {
    let tag = out.len();
    put_varint(out, u64::from(number) << 3 | 2);
    out.push(0);
    Open { tag, content: out.len() }
}

/// Ends a nested message.
pub(super) fn close(out: &mut Vec<u8>, open: Open) {
    let length = out.len() - open.content;
    if let Ok(short @ 0..0x80) = u8::try_from(length) {
        out[open.content - 1] = short;
        return;
    }
    let mut prefix = Vec::with_capacity(5);
    put_varint(&mut prefix, length as u64);
    out.splice(open.content - 1..open.content, prefix);
}

/// Ends a nested message that nothing was written to: it goes away again. True when something was.
pub(super) fn close_unless_empty(out: &mut Vec<u8>, open: Open) -> bool {
    let empty = out.len() == open.content;
    if empty {
        drop_open(out, &open);
    } else {
        close(out, open);
    }
    !empty
}

/// Takes back a nested message.
pub(super) fn drop_open(out: &mut Vec<u8>, open: &Open) {
    out.truncate(open.tag);
}
