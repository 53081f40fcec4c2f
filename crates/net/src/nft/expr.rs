//! Expressions of rules. Registers are 32 bits wide; a concatenation is a run of neighbouring registers, which is
//! also the layout of a set key.

use crate::address::Family;
use crate::netlink::Message;

/// Register by number, 0 to 15.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct R(pub(crate) u32);

impl R {
    fn wire(self) -> u32 {
        const FIRST_32_BIT_REGISTER: u32 = 8;
        FIRST_32_BIT_REGISTER + self.0
    }
}

/// How many registers an address of a family fills.
pub(crate) fn registers(family: Family) -> u32 {
    u32::from(family.width()) / 32
}

/// One part of a set key.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Field {
    Address,
    Protocol,
    Port,
    Number,
}

impl Field {
    /// How much of its registers a field fills.
    pub(super) fn bytes(self, family: Family) -> u32 {
        match self {
            Field::Address => u32::from(family.width()) / 8,
            Field::Number => 4,
            Field::Protocol => 1,
            Field::Port => 2,
        }
    }

    /// The type, as `nft` numbers its types.
    fn number(self, family: Family) -> u32 {
        match (self, family) {
            (Field::Address, Family::V4) => 7,
            (Field::Address, Family::V6) => 8,
            (Field::Protocol, _) => 12,
            (Field::Port, _) => 13,
            (Field::Number, _) => 19,
        }
    }

    pub(crate) fn concatenated(fields: &[Field], family: Family) -> u32 {
        fields.iter().fold(0, |all, f| all << 6 | f.number(family))
    }
}

/// What becomes of a packet.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Verdict {
    Drop,
    Accept,
    Return,
    Jump(String),
    Goto(String),
}

impl Verdict {
    pub(super) fn write(&self, m: &mut Message<'_>) {
        const VERDICT: u16 = 2;
        let (code, chain) = match self {
            Verdict::Drop => (0i32, None),
            Verdict::Accept => (1, None),
            Verdict::Return => (-5, None),
            Verdict::Jump(chain) => (-3, Some(chain)),
            Verdict::Goto(chain) => (-4, Some(chain)),
        };
        m.nest(VERDICT, |m| {
            m.network(1, code.cast_unsigned());
            if let Some(chain) = chain {
                m.text(2, chain);
            }
        });
    }
}

/// One step of a rule; a comparison or look-up that fails ends the rule.
#[derive(Clone, Debug)]
pub(crate) enum Expr {
    /// source address
    Source(R),
    /// destination address
    Destination(R),
    /// destination port of TCP, UDP or SCTP
    DestinationPort(R),
    L4Protocol(R),
    InterfaceInName(R),
    /// the packet's mark
    Mark(R),
    SetMark(R),
    /// `ct state` bits
    CtState(R),
    /// `ct status` bits
    CtStatus(R),
    /// kind of the destination address (local, unicast…)
    DestinationType(R),
    /// the same for the source
    SourceType(R),
    Load(R, Vec<u8>),
    /// keeps the bits of a mask, given as they lie in memory
    And(R, Vec<u8>),
    /// flips bits, given as they lie in memory
    Xor(R, [u8; 4]),
    Equal(R, Vec<u8>),
    NotEqual(R, Vec<u8>),
    /// key begins at the register; must be in the set
    InSet(&'static str, R),
    NotInSet(&'static str, R),
    /// key at the first register; the value goes to the second
    Map(&'static str, R, R),
    VerdictMap(&'static str, R),
    /// a random number below the second value
    Random(R, u32),
    /// address and port
    Dnat(R, R),
    Snat(R),
    Masquerade,
    /// (set, key, value, seconds)
    Remember(&'static str, R, R, u32),
    /// (map, key, value): the kernel wants a value register even to delete
    Forget(&'static str, R, R),
    RejectTcpReset,
    RejectPortUnreachable,
    Do(Verdict),
}

const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;
const MARK: u32 = 3;

impl Expr {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Expr::Source(_) | Expr::Destination(_) | Expr::DestinationPort(_) => "payload",
            Expr::L4Protocol(_) | Expr::InterfaceInName(_) | Expr::Mark(_) | Expr::SetMark(_) => "meta",
            Expr::CtState(_) | Expr::CtStatus(_) => "ct",
            Expr::DestinationType(_) | Expr::SourceType(_) => "fib",
            Expr::Load(..) | Expr::Do(_) => "immediate",
            Expr::And(..) | Expr::Xor(..) => "bitwise",
            Expr::Equal(..) | Expr::NotEqual(..) => "cmp",
            Expr::InSet(..) | Expr::NotInSet(..) | Expr::Map(..) | Expr::VerdictMap(..) => "lookup",
            Expr::Random(..) => "numgen",
            Expr::Dnat(..) | Expr::Snat(_) => "nat",
            Expr::Masquerade => "masq",
            Expr::Remember(..) | Expr::Forget(..) => "dynset",
            Expr::RejectTcpReset | Expr::RejectPortUnreachable => "reject",
        }
    }

    pub(super) fn write(&self, m: &mut Message<'_>, family: Family) {
        match self {
            Expr::Source(r) => address(m, *r, family, (12, 8)),
            Expr::Destination(r) => address(m, *r, family, (16, 24)),
            Expr::DestinationPort(r) => payload(m, *r, TRANSPORT_HEADER, 2, 2),
            Expr::L4Protocol(r) => pair(m, *r, 16),
            Expr::InterfaceInName(r) => pair(m, *r, 6),
            Expr::Mark(r) => pair(m, *r, MARK),
            Expr::SetMark(r) => {
                m.network(2, MARK);
                m.network(3, r.wire());
            }
            Expr::CtState(r) => pair(m, *r, 0),
            Expr::CtStatus(r) => pair(m, *r, 2),
            Expr::DestinationType(r) => address_type(m, *r, 2),
            Expr::SourceType(r) => address_type(m, *r, 1),
            Expr::Load(r, bytes) => {
                m.network(1, r.wire());
                m.nest(2, |m| m.raw(1, bytes));
            }
            Expr::And(r, mask) => {
                m.network(1, r.wire());
                m.network(2, r.wire());
                m.network(3, u32::try_from(mask.len()).expect("at most the bytes of an address"));
                m.nest(4, |m| m.raw(1, mask));
                m.nest(5, |m| m.raw(1, &vec![0; mask.len()]));
            }
            Expr::Xor(r, bits) => {
                m.network(1, r.wire());
                m.network(2, r.wire());
                m.network(3, 4);
                m.nest(4, |m| m.raw(1, &[0xff; 4]));
                m.nest(5, |m| m.raw(1, bits));
            }
            Expr::Equal(r, bytes) => compare(m, *r, 0, bytes),
            Expr::NotEqual(r, bytes) => compare(m, *r, 1, bytes),
            Expr::InSet(set, key) => {
                m.text(1, set);
                m.network(2, key.wire());
            }
            Expr::NotInSet(set, key) => {
                const INVERTED: u32 = 1;
                m.text(1, set);
                m.network(2, key.wire());
                m.network(5, INVERTED);
            }
            Expr::Map(set, key, value) => {
                m.text(1, set);
                m.network(2, key.wire());
                m.network(3, value.wire());
            }
            Expr::VerdictMap(set, key) => {
                m.text(1, set);
                m.network(2, key.wire());
                m.network(3, 0);
            }
            Expr::Random(r, below) => {
                const RANDOM: u32 = 1;
                m.network(1, r.wire());
                m.network(2, *below);
                m.network(3, RANDOM);
            }
            Expr::Dnat(address, port) => {
                nat(m, 1, *address, family);
                m.network(5, port.wire());
            }
            Expr::Snat(address) => nat(m, 0, *address, family),
            Expr::Masquerade => {
                // Fully random ports: two flows that start at once must not fight for one.
                const RANDOM_FULLY: u32 = 1 << 4;
                m.network(1, RANDOM_FULLY);
            }
            Expr::Remember(set, key, value, seconds) => {
                const UPDATE: u32 = 1;
                m.text(1, set);
                m.network(3, UPDATE);
                m.network(4, key.wire());
                m.network(5, value.wire());
                m.raw(6, &(u64::from(*seconds) * 1000).to_be_bytes());
            }
            Expr::Forget(set, key, value) => {
                const DELETE: u32 = 2;
                m.text(1, set);
                m.network(3, DELETE);
                m.network(4, key.wire());
                m.network(5, value.wire());
            }
            Expr::RejectTcpReset => m.network(1, 1),
            Expr::RejectPortUnreachable => {
                // The codes of ICMP and of ICMPv6.
                let code = if family == Family::V4 { 3 } else { 4 };
                m.network(1, 0);
                m.raw(2, &[code]);
            }
            Expr::Do(verdict) => {
                m.network(1, 0);
                m.nest(2, |m| verdict.write(m));
            }
        }
    }
}

/// Kind of an address by the routing table.
fn address_type(m: &mut Message<'_>, r: R, of: u32) {
    const RESULT_ADDRESS_TYPE: u32 = 3;
    m.network(1, r.wire());
    m.network(2, RESULT_ADDRESS_TYPE);
    m.network(3, of);
}

/// An address out of the header; where it is there in IPv4 and in IPv6.
fn address(m: &mut Message<'_>, r: R, family: Family, (v4, v6): (u32, u32)) {
    let offset = if family == Family::V4 { v4 } else { v6 };
    payload(m, r, NETWORK_HEADER, offset, Field::Address.bytes(family));
}

fn payload(m: &mut Message<'_>, r: R, base: u32, offset: u32, bytes: u32) {
    m.network(1, r.wire());
    m.network(2, base);
    m.network(3, offset);
    m.network(4, bytes);
}

/// `meta` and `ct` both begin with destination register and key.
fn pair(m: &mut Message<'_>, r: R, key: u32) {
    m.network(1, r.wire());
    m.network(2, key);
}

fn compare(m: &mut Message<'_>, r: R, operator: u32, bytes: &[u8]) {
    m.network(1, r.wire());
    m.network(2, operator);
    m.nest(3, |m| m.raw(1, bytes));
}

fn nat(m: &mut Message<'_>, kind: u32, address: R, family: Family) {
    m.network(1, kind);
    m.network(2, family.code().into());
    m.network(3, address.wire());
}
