//! Metadata of an encoded object, read in one pass over its bytes without building a tree.

use std::borrow::Cow;
use std::collections::BTreeMap;

use bytes::Bytes;

/// What caches, selectors and the garbage collector need of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub labels: BTreeMap<String, String>,
    pub owners: Vec<Owner>,
    /// RFC 3339
    pub deletion_timestamp: Option<String>,
    /// Whether `metadata.finalizers` has an entry
    pub has_finalizers: bool,
    pub resource_version: String,
    /// Where a resourceVersion is spliced in: just behind `"metadata":{`
    pub splice_offset: usize,
}

/// One owner reference.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Owner {
    pub uid: String,
    pub kind: String,
    pub name: String,
    pub controller: bool,
    pub block_owner_deletion: bool,
}

/// The bytes are no JSON object.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid stored object at byte {0}")]
pub struct ScanError(pub usize);

/// Reads the metadata.
///
/// # Errors
/// When the bytes are no JSON object.
pub fn scan(bytes: &[u8]) -> Result<Meta, ScanError> {
    scan_fields(bytes, &[]).map(|(meta, _)| meta)
}

/// Reads the metadata and the scalars at dotted paths (`spec.nodeName`), "" where there is none; numbers and booleans
/// come as their JSON text.
///
/// # Errors
/// When the bytes are no JSON object.
pub fn scan_fields(bytes: &[u8], paths: &[&str]) -> Result<(Meta, Vec<String>), ScanError> {
    let mut scanner = Scanner { bytes, at: 0 };
    let mut meta = Meta::default();
    let mut values = vec![String::new(); paths.len()];
    let wanted: Vec<(usize, &str)> = paths.iter().copied().enumerate().collect();
    scanner.object(|s, key| {
        if key == "metadata" && s.peek() == Some(b'{') {
            meta.splice_offset = s.at + 1;
            let from = s.at;
            s.metadata(&mut meta)?;
            let inner = descend(&wanted, key);
            if !inner.is_empty() {
                Scanner { bytes: s.bytes, at: from }.collect(&inner, &mut values)?;
            }
            return Ok(());
        }
        s.field(key, &wanted, &mut values)
    })?;
    Ok((meta, values))
}

/// Copies stored bytes with `"resourceVersion":"<revision>"` put in at the offset given by [`Meta::splice_offset`].
pub fn splice(bytes: &[u8], offset: usize, revision: u64) -> Bytes {
    const HEAD: &[u8] = b"\"resourceVersion\":\"";
    let mut digits = [0u8; 20];
    let mut start = digits.len();
    let mut rest = revision;
    loop {
        start -= 1;
        digits[start] = b'0' + u8::try_from(rest % 10).expect("below ten");
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    let digits = &digits[start..];
    let (before, after) = bytes.split_at(offset);
    let mut out = Vec::with_capacity(bytes.len() + HEAD.len() + digits.len() + 2);
    out.extend_from_slice(before);
    out.extend_from_slice(HEAD);
    out.extend_from_slice(digits);
    out.push(b'"');
    if after.first().is_some_and(|b| *b != b'}') {
        out.push(b',');
    }
    out.extend_from_slice(after);
    out.into()
}

fn descend<'p>(paths: &[(usize, &'p str)], key: &str) -> Vec<(usize, &'p str)> {
    let rest = |path: &'p str| path.strip_prefix(key)?.strip_prefix('.');
    paths.iter().filter_map(|(i, path)| Some((*i, rest(path)?))).collect()
}

struct Scanner<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Scanner<'a> {
    fn error<T>(&self) -> Result<T, ScanError> {
        Err(ScanError(self.at))
    }

    fn peek(&mut self) -> Option<u8> {
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = self.bytes.get(self.at) {
            self.at += 1;
        }
        self.bytes.get(self.at).copied()
    }

    fn expect(&mut self, byte: u8) -> Result<(), ScanError> {
        if self.peek() != Some(byte) {
            return self.error();
        }
        self.at += 1;
        Ok(())
    }

    /// Calls `each` for every member, positioned at its value, which `each` must consume.
    fn object(
        &mut self,
        mut each: impl FnMut(&mut Self, &str) -> Result<(), ScanError>,
    ) -> Result<(), ScanError> {
        self.expect(b'{')?;
        if self.peek() == Some(b'}') {
            self.at += 1;
            return Ok(());
        }
        loop {
            let key = self.string()?;
            self.expect(b':')?;
            each(self, &key)?;
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b'}') => {
                    self.at += 1;
                    return Ok(());
                }
                _ => return self.error(),
            }
        }
    }

    fn array(&mut self, mut each: impl FnMut(&mut Self) -> Result<(), ScanError>) -> Result<(), ScanError> {
        self.expect(b'[')?;
        if self.peek() == Some(b']') {
            self.at += 1;
            return Ok(());
        }
        loop {
            each(self)?;
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b']') => {
                    self.at += 1;
                    return Ok(());
                }
                _ => return self.error(),
            }
        }
    }

    /// The bytes of a string, quotes included.
    fn raw_string(&mut self) -> Result<&'a [u8], ScanError> {
        self.expect(b'"')?;
        let start = self.at - 1;
        loop {
            match self.bytes.get(self.at) {
                Some(b'\\') => self.at += 2,
                Some(b'"') => {
                    self.at += 1;
                    return Ok(&self.bytes[start..self.at]);
                }
                Some(_) => self.at += 1,
                None => return self.error(),
            }
        }
    }

    fn string(&mut self) -> Result<Cow<'a, str>, ScanError> {
        let raw = self.raw_string()?;
        let inner = &raw[1..raw.len() - 1];
        if inner.contains(&b'\\') {
            return serde_json::from_slice::<String>(raw).map(Cow::Owned).or_else(|_| self.error());
        }
        std::str::from_utf8(inner).map(Cow::Borrowed).or_else(|_| self.error())
    }

    fn skip(&mut self) -> Result<(), ScanError> {
        match self.peek() {
            Some(b'"') => self.raw_string().map(drop),
            Some(b'{' | b'[') => self.skip_nested(),
            Some(_) => self.scalar().map(drop),
            None => self.error(),
        }
    }

    /// Skips a container by counting brackets outside strings.
    fn skip_nested(&mut self) -> Result<(), ScanError> {
        let mut depth = 0usize;
        loop {
            match self.bytes.get(self.at) {
                Some(b'{' | b'[') => depth += 1,
                Some(b'}' | b']') => {
                    depth -= 1;
                    if depth == 0 {
                        self.at += 1;
                        return Ok(());
                    }
                }
                Some(b'"') => {
                    self.raw_string()?;
                    continue;
                }
                Some(_) => {}
                None => return self.error(),
            }
            self.at += 1;
        }
    }

    /// The text of a number, boolean or null.
    fn scalar(&mut self) -> Result<&'a str, ScanError> {
        let start = self.at;
        while let Some(byte) = self.bytes.get(self.at) {
            if matches!(byte, b',' | b'}' | b']' | b' ' | b'\n' | b'\r' | b'\t') {
                break;
            }
            self.at += 1;
        }
        match std::str::from_utf8(&self.bytes[start..self.at]) {
            Ok(text) if !text.is_empty() => Ok(text),
            _ => self.error(),
        }
    }

    /// A string, "" for null; other values are skipped.
    fn text(&mut self) -> Result<String, ScanError> {
        match self.peek() {
            Some(b'"') => self.string().map(Cow::into_owned),
            _ => self.skip().map(|()| String::new()),
        }
    }

    fn boolean(&mut self) -> Result<bool, ScanError> {
        match self.peek() {
            Some(b't' | b'f' | b'n') => self.scalar().map(|text| text == "true"),
            _ => self.skip().map(|()| false),
        }
    }

    fn collect(&mut self, wanted: &[(usize, &str)], values: &mut [String]) -> Result<(), ScanError> {
        self.object(|s, key| s.field(key, wanted, values))
    }

    fn field(&mut self, key: &str, wanted: &[(usize, &str)], values: &mut [String]) -> Result<(), ScanError> {
        if !wanted.iter().any(|(_, path)| path.starts_with(key)) {
            return self.skip();
        }
        let here = |path: &str| path == key;
        match self.peek() {
            Some(b'{') => {
                let inner = descend(wanted, key);
                if inner.is_empty() { self.skip() } else { self.collect(&inner, values) }
            }
            Some(b'[') | None => self.skip(),
            Some(first) => {
                let text = if first == b'"' { self.string()? } else { Cow::Borrowed(self.scalar()?) };
                if first != b'n' {
                    for (i, _) in wanted.iter().filter(|(_, path)| here(path)) {
                        values[*i] = text.clone().into_owned();
                    }
                }
                Ok(())
            }
        }
    }

    fn metadata(&mut self, meta: &mut Meta) -> Result<(), ScanError> {
        self.object(|s, key| {
            let first = s.peek();
            match (key, first) {
                ("namespace", _) => meta.namespace = s.text()?,
                ("name", _) => meta.name = s.text()?,
                ("uid", _) => meta.uid = s.text()?,
                ("resourceVersion", _) => meta.resource_version = s.text()?,
                ("deletionTimestamp", Some(b'"')) => meta.deletion_timestamp = Some(s.text()?),
                ("labels", Some(b'{')) => s.object(|s, label| {
                    let value = s.text()?;
                    meta.labels.insert(label.to_owned(), value);
                    Ok(())
                })?,
                ("finalizers", Some(b'[')) => s.array(|s| {
                    meta.has_finalizers = true;
                    s.skip()
                })?,
                ("ownerReferences", Some(b'[')) => s.array(|s| {
                    let owner = s.owner()?;
                    meta.owners.push(owner);
                    Ok(())
                })?,
                _ => s.skip()?,
            }
            Ok(())
        })
    }

    fn owner(&mut self) -> Result<Owner, ScanError> {
        let mut owner = Owner::default();
        self.object(|s, key| {
            match key {
                "uid" => owner.uid = s.text()?,
                "kind" => owner.kind = s.text()?,
                "name" => owner.name = s.text()?,
                "controller" => owner.controller = s.boolean()?,
                "blockOwnerDeletion" => owner.block_owner_deletion = s.boolean()?,
                _ => s.skip()?,
            }
            Ok(())
        })?;
        Ok(owner)
    }
}
