//! nftables over netlink: one [`Batch`] is one transaction on one table.
//!
//! ```text
//!   Batch::new(table) ─ .table() .set() .chain() .rule() .elements() ─▶ commit()
//!        BATCH_BEGIN │ NEWTABLE │ NEWSET … NEWSETELEM × n (each below 64 KiB) … │ BATCH_END   one datagram
//! ```
//!
//! The kernel takes all of a batch or nothing, and packets see the old state or the new one. Formats:
//! linux/netfilter/nf_tables.h, linux/netfilter/nfnetlink.h.

pub(crate) mod conntrack;
mod expr;

pub(crate) use expr::{Expr, Field, R, Verdict, registers};

use crate::address::Family;
use crate::netlink::{NetlinkError, Socket, Writer};

const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NEW_TABLE: u16 = 0;
const DELETE_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const NEW_RULE: u16 = 6;
const NEW_SET: u16 = 9;
const NEW_ELEMENT: u16 = 12;
const DELETE_ELEMENT: u16 = 14;
const CREATE: u16 = 0x400;
const APPEND: u16 = 0x800;
const LIST_ELEMENT: u16 = 1;
const DATA_VALUE: u16 = 1;
/// An element takes at most about 120 bytes and a list must stay below 64 KiB.
const ELEMENTS_PER_MESSAGE: usize = 400;

/// Where a base chain is hooked in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hook {
    pub(crate) kind: &'static str,
    pub(crate) point: HookPoint,
    pub(crate) priority: i32,
}

/// Numbers from linux/netfilter.h.
#[derive(Clone, Copy, Debug)]
pub(crate) enum HookPoint {
    Prerouting = 0,
    Input = 1,
    Forward = 2,
    Output = 3,
    Postrouting = 4,
}

/// What a set's elements are made of. The type numbers only tell `nft list` how to print them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SetSpec {
    pub(crate) name: &'static str,
    pub(crate) key: &'static [Field],
    pub(crate) value: SetValue,
    pub(crate) kind: SetKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SetKind {
    Plain,
    /// elements are added by packets and expire
    Dynamic,
    /// elements are ranges in every part of the key
    Ranges,
}

/// What a set maps its keys to.
#[derive(Clone, Copy, Debug)]
pub(crate) enum SetValue {
    Nothing,
    Verdict,
    Data(&'static [Field]),
}

/// One element of a set or map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Value {
    Nothing,
    Verdict(Verdict),
    Data(Vec<u8>),
    /// the last key of a range
    Until(Vec<u8>),
}

/// A transaction on one table of one address family.
pub(crate) struct Batch {
    writer: Writer,
    table: String,
    family: Family,
    sets: u32,
}

impl Batch {
    pub(crate) fn new(table: &str, family: Family) -> Self {
        let mut batch = Self { writer: Writer::default(), table: table.to_owned(), family, sets: 0 };
        batch.writer.message(BATCH_BEGIN, 0, &batch_header(), |_| {});
        batch
    }

    pub(crate) fn family(&self) -> Family {
        self.family
    }

    /// True if nothing was added.
    pub(crate) fn is_empty(&self) -> bool {
        self.writer.messages() == 1
    }

    /// Starts the table afresh: whatever it held goes away in the same transaction.
    pub(crate) fn replace_table(&mut self) {
        let Self { writer, table, family, .. } = self;
        writer.message(kind(NEW_TABLE), CREATE, &header(*family), |m| m.text(1, table));
        writer.message(kind(DELETE_TABLE), 0, &header(*family), |m| m.text(1, table));
        writer.message(kind(NEW_TABLE), CREATE, &header(*family), |m| m.text(1, table));
    }

    pub(crate) fn chain(&mut self, name: &str, hook: Option<Hook>) {
        let Self { writer, table, family, .. } = self;
        writer.message(kind(NEW_CHAIN), CREATE, &header(*family), |m| {
            m.text(1, table);
            m.text(3, name);
            if let Some(hook) = hook {
                m.nest(4, |m| {
                    m.network(1, hook.point as u32);
                    m.network(2, hook.priority.cast_unsigned());
                });
                m.text(7, hook.kind);
            }
        });
    }

    /// Appends a rule to a chain.
    pub(crate) fn rule(&mut self, chain: &str, expressions: &[Expr]) {
        let Self { writer, table, family, .. } = self;
        writer.message(kind(NEW_RULE), CREATE | APPEND, &header(*family), |m| {
            m.text(1, table);
            m.text(2, chain);
            m.nest(4, |m| {
                for expression in expressions {
                    m.nest(LIST_ELEMENT, |m| {
                        m.text(1, expression.name());
                        m.nest(2, |m| expression.write(m, *family));
                    });
                }
            });
        });
    }

    pub(crate) fn set(&mut self, spec: &SetSpec) {
        const INTERVAL: u32 = 0x04;
        const MAP: u32 = 0x08;
        const TIMEOUT: u32 = 0x10;
        const DYNAMIC: u32 = 0x20;
        const CONCATENATED: u32 = 0x80;
        const VERDICT_TYPE: u32 = 0xffff_ff00;
        /// bound on remembered clients, as the kernel asks for one
        const DYNAMIC_ELEMENTS: u32 = 1 << 18;
        self.sets += 1;
        let Self { writer, table, family, sets } = self;
        let map = if matches!(spec.value, SetValue::Nothing) { 0 } else { MAP };
        let kind_bits = match spec.kind {
            SetKind::Plain => 0,
            SetKind::Dynamic => TIMEOUT | DYNAMIC,
            SetKind::Ranges => INTERVAL | CONCATENATED,
        };
        writer.message(kind(NEW_SET), CREATE, &header(*family), |m| {
            m.text(1, table);
            m.text(2, spec.name);
            m.network(3, map | kind_bits);
            m.network(4, Field::concatenated(spec.key, *family));
            m.network(5, bytes_of(spec.key, *family));
            match spec.value {
                SetValue::Nothing => {}
                SetValue::Verdict => m.network(6, VERDICT_TYPE),
                SetValue::Data(fields) => {
                    m.network(6, Field::concatenated(fields, *family));
                    m.network(7, bytes_of(fields, *family));
                }
            }
            match spec.kind {
                SetKind::Plain => {}
                SetKind::Dynamic => m.nest(9, |m| m.network(1, DYNAMIC_ELEMENTS)),
                // The kernel must know where each part of the key ends.
                SetKind::Ranges => m.nest(9, |m| {
                    m.nest(2, |m| {
                        for field in spec.key {
                            m.nest(LIST_ELEMENT, |m| m.network(1, field.bytes(*family)));
                        }
                    });
                }),
            }
            m.network(10, *sets);
        });
    }

    pub(crate) fn add<'a>(&mut self, set: &str, elements: impl Iterator<Item = (&'a [u8], &'a Value)>) {
        self.elements(NEW_ELEMENT, CREATE, set, elements);
    }

    pub(crate) fn remove<'a>(&mut self, set: &str, elements: impl Iterator<Item = (&'a [u8], &'a Value)>) {
        self.elements(DELETE_ELEMENT, 0, set, elements);
    }

    fn elements<'a>(
        &mut self,
        message: u16,
        flags: u16,
        set: &str,
        elements: impl Iterator<Item = (&'a [u8], &'a Value)>,
    ) {
        let all: Vec<_> = elements.collect();
        let Self { writer, table, family, .. } = self;
        for chunk in all.chunks(ELEMENTS_PER_MESSAGE) {
            writer.message(kind(message), flags, &header(*family), |m| {
                m.text(1, table);
                m.text(2, set);
                m.nest(3, |m| {
                    for (key, value) in chunk {
                        m.nest(LIST_ELEMENT, |m| {
                            m.nest(1, |m| m.raw(DATA_VALUE, key));
                            match value {
                                Value::Nothing => {}
                                Value::Verdict(verdict) => m.nest(2, |m| verdict.write(m)),
                                Value::Data(bytes) => m.nest(2, |m| m.raw(DATA_VALUE, bytes)),
                                Value::Until(last) => m.nest(10, |m| m.raw(DATA_VALUE, last)),
                            }
                        });
                    }
                });
            });
        }
    }

    /// Hands the transaction to the kernel. Keep the socket: closing it waits until what was deleted is freed.
    pub(crate) fn commit(mut self, socket: &Socket) -> Result<(), NetlinkError> {
        if self.is_empty() {
            return Ok(());
        }
        self.writer.acknowledge_last();
        self.writer.message(BATCH_END, 0, &batch_header(), |_| {});
        socket.send(&self.writer)
    }
}

/// Deletes a table with all in it, in the network namespace of the calling thread.
pub(crate) fn delete_table(table: &str, family: Family) -> Result<(), NetlinkError> {
    let mut batch = Batch::new(table, family);
    let Batch { writer, table, .. } = &mut batch;
    writer.message(kind(DELETE_TABLE), 0, &header(family), |m| m.text(1, table));
    batch.commit(&Socket::netfilter()?)
}

fn kind(message: u16) -> u16 {
    SUBSYSTEM << 8 | message
}

fn header(family: Family) -> [u8; 4] {
    [family.code(), 0, 0, 0]
}

fn batch_header() -> [u8; 4] {
    let id = SUBSYSTEM.to_be_bytes();
    [0, 0, id[0], id[1]]
}

/// Every part of a concatenation fills whole registers of four bytes.
fn bytes_of(fields: &[Field], family: Family) -> u32 {
    fields.iter().map(|field| field.bytes(family).next_multiple_of(4)).sum()
}
