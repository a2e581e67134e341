//! Packets, built by a library that knows nothing of sluice, so that equal bytes mean right
//! checksums.

use std::net::IpAddr;

use etherparse::{
    IcmpEchoHeader, Icmpv4Header, Icmpv4Type, Icmpv6Header, Icmpv6Type, IpFragOffset, IpNumber, Ipv4Header,
    Ipv4Options, Ipv6FragmentHeader, Ipv6Header, TcpHeader, UdpHeader, icmpv4, icmpv6,
};

/// An Ethernet address.
pub(crate) type Mac = [u8; 6];

/// A packet that is easily changed.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Packet {
    /// Ethernet source.
    pub(crate) from: Mac,
    /// Ethernet destination.
    pub(crate) to: Mac,
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    /// TTL or hop limit.
    pub(crate) ttl: u8,
    /// Type of service or traffic class.
    pub(crate) tos: u8,
    /// Of IPv4, and of IPv6 fragments.
    pub(crate) identification: u16,
    /// Of IPv4.
    pub(crate) dont_fragment: bool,
    /// With IPv4 options, or IPv6 extension headers.
    pub(crate) extended: bool,
    pub(crate) body: Body,
}

/// What an IP header is followed by.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Body {
    Tcp { ports: [u16; 2], flags: u8, payload: Vec<u8> },
    Udp { ports: [u16; 2], checksum: bool, payload: Vec<u8> },
    Icmp(Message, Vec<u8>),
}

/// ICMP messages.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Message {
    Echo,
    PortUnreachable,
    TooBig(u32),
    TimeExceeded,
}

/// TCP flags.
pub(crate) const FIN: u8 = 1;
pub(crate) const SYN: u8 = 2;
pub(crate) const RST: u8 = 4;
pub(crate) const ACK: u8 = 0x10;

impl Packet {
    /// From an address and port to another.
    pub(crate) fn new(source: IpAddr, destination: IpAddr, body: Body) -> Self {
        Self {
            from: [2, 0, 0, 9, 9, 1],
            to: [2, 0, 0, 9, 9, 2],
            source,
            destination,
            ttl: 61,
            tos: 0,
            identification: 0x1234,
            dont_fragment: true,
            extended: false,
            body,
        }
    }

    pub(crate) fn ports(&self) -> [u16; 2] {
        match self.body {
            Body::Tcp { ports, .. } | Body::Udp { ports, .. } => ports,
            Body::Icmp(..) => [0, 0],
        }
    }

    pub(crate) fn protocol(&self) -> u8 {
        match (&self.body, self.source) {
            (Body::Tcp { .. }, _) => 6,
            (Body::Udp { .. }, _) => 17,
            (Body::Icmp(..), IpAddr::V4(_)) => 1,
            (Body::Icmp(..), IpAddr::V6(_)) => 58,
        }
    }

    /// With other addresses.
    pub(crate) fn between(mut self, source: IpAddr, destination: IpAddr) -> Self {
        (self.source, self.destination) = (source, destination);
        self
    }

    /// With other ports.
    pub(crate) fn with_ports(mut self, source: u16, destination: u16) -> Self {
        match &mut self.body {
            Body::Tcp { ports, .. } | Body::Udp { ports, .. } => *ports = [source, destination],
            Body::Icmp(..) => {}
        }
        self
    }

    /// With other Ethernet addresses.
    pub(crate) fn by(mut self, from: Mac, to: Mac) -> Self {
        (self.from, self.to) = (from, to);
        self
    }

    /// With so much less of TTL or hop limit.
    pub(crate) fn aged(mut self, by: u8) -> Self {
        self.ttl -= by;
        self
    }

    /// With such TCP flags.
    pub(crate) fn flagged(mut self, with: u8) -> Self {
        if let Body::Tcp { flags, .. } = &mut self.body {
            *flags = with;
        }
        self
    }

    /// One that routers may cut up.
    pub(crate) fn may_be_cut(mut self) -> Self {
        self.dont_fragment = false;
        self
    }

    /// As the programs hand it to the stack, which cuts it up: with the Ethernet addresses of `lo`.
    pub(crate) fn by_lo(self) -> Self {
        self.by([0; 6], [0; 6])
    }

    /// With so many bytes of payload.
    pub(crate) fn sized(mut self, bytes: usize) -> Self {
        match &mut self.body {
            Body::Tcp { payload, .. } | Body::Udp { payload, .. } | Body::Icmp(_, payload) => {
                *payload = (0..bytes).map(|at| (at * 7 + 3) as u8).collect();
            }
        }
        self
    }

    /// The other end's answer.
    pub(crate) fn reply(&self) -> Self {
        let [source, destination] = self.ports();
        let mut reply = self.clone().between(self.destination, self.source).with_ports(destination, source);
        reply.ttl = 64;
        reply.flagged(if self.protocol() == 6 { SYN | ACK } else { 0 })
    }

    /// The bytes of the transport header and what follows.
    pub(crate) fn transport(&self) -> Vec<u8> {
        let mut bytes = vec![];
        match &self.body {
            Body::Tcp { ports: [source, destination], flags, payload } => {
                let mut header = TcpHeader::new(*source, *destination, 0x0102_0304, 0x2000);
                header.fin = flags & FIN != 0;
                header.syn = flags & SYN != 0;
                header.rst = flags & RST != 0;
                header.ack = flags & ACK != 0;
                header.checksum = match (self.source, self.destination) {
                    (IpAddr::V4(from), IpAddr::V4(to)) => {
                        header.calc_checksum_ipv4_raw(from.octets(), to.octets(), payload)
                    }
                    (IpAddr::V6(from), IpAddr::V6(to)) => {
                        header.calc_checksum_ipv6_raw(from.octets(), to.octets(), payload)
                    }
                    _ => unreachable!("one family"),
                }
                .unwrap();
                header.write(&mut bytes).unwrap();
                bytes.extend_from_slice(payload);
            }
            Body::Udp { ports: [source, destination], checksum, payload } => {
                let mut header =
                    UdpHeader::without_ipv4_checksum(*source, *destination, payload.len()).unwrap();
                if *checksum {
                    header.checksum = match (self.source, self.destination) {
                        (IpAddr::V4(from), IpAddr::V4(to)) => {
                            header.calc_checksum_ipv4_raw(from.octets(), to.octets(), payload)
                        }
                        (IpAddr::V6(from), IpAddr::V6(to)) => {
                            header.calc_checksum_ipv6_raw(from.octets(), to.octets(), payload)
                        }
                        _ => unreachable!("one family"),
                    }
                    .unwrap();
                }
                header.write(&mut bytes).unwrap();
                bytes.extend_from_slice(payload);
            }
            Body::Icmp(message, payload) => {
                match (self.source, self.destination) {
                    (IpAddr::V6(from), IpAddr::V6(to)) => {
                        let kind = match *message {
                            Message::Echo => Icmpv6Type::EchoRequest(IcmpEchoHeader { id: 7, seq: 1 }),
                            Message::PortUnreachable => {
                                Icmpv6Type::DestinationUnreachable(icmpv6::DestUnreachableCode::Port)
                            }
                            Message::TooBig(mtu) => Icmpv6Type::PacketTooBig { mtu },
                            Message::TimeExceeded => {
                                Icmpv6Type::TimeExceeded(icmpv6::TimeExceededCode::HopLimitExceeded)
                            }
                        };
                        let header =
                            Icmpv6Header::with_checksum(kind, from.octets(), to.octets(), payload).unwrap();
                        header.write(&mut bytes).unwrap();
                    }
                    _ => {
                        let kind = match *message {
                            Message::Echo => Icmpv4Type::EchoRequest(IcmpEchoHeader { id: 7, seq: 1 }),
                            Message::PortUnreachable => {
                                Icmpv4Type::DestinationUnreachable(icmpv4::DestUnreachableHeader::Port)
                            }
                            Message::TooBig(mtu) => Icmpv4Type::DestinationUnreachable(
                                icmpv4::DestUnreachableHeader::FragmentationNeeded {
                                    next_hop_mtu: mtu as u16,
                                },
                            ),
                            Message::TimeExceeded => {
                                Icmpv4Type::TimeExceeded(icmpv4::TimeExceededCode::TtlExceededInTransit)
                            }
                        };
                        Icmpv4Header::with_checksum(kind, payload).write(&mut bytes).unwrap();
                    }
                }
                bytes.extend_from_slice(payload);
            }
        }
        bytes
    }

    /// IP header with all that belongs to it, before `content`. `part`: of a fragment, its offset
    /// in units of 8 bytes, and whether more follow.
    fn wrapped(&self, content: &[u8], part: Option<(u16, bool)>) -> Vec<u8> {
        let mut bytes = vec![];
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let mut header = Ipv4Header::new(
                    content.len() as u16,
                    self.ttl,
                    IpNumber(self.protocol()),
                    source.octets(),
                    destination.octets(),
                )
                .unwrap();
                header.dscp = (self.tos >> 2).try_into().unwrap();
                header.ecn = (self.tos & 3).try_into().unwrap();
                header.identification = self.identification;
                header.dont_fragment = self.dont_fragment && part.is_none();
                if let Some((at, more)) = part {
                    header.fragment_offset = IpFragOffset::try_new(at).unwrap();
                    header.more_fragments = more;
                }
                if self.extended {
                    // Three without meaning and the end.
                    header.options = Ipv4Options::try_from([1, 1, 1, 0].as_slice()).unwrap();
                    header.total_len += 4;
                }
                header.header_checksum = header.calc_header_checksum();
                header.write(&mut bytes).unwrap();
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                // Hop-by-hop options and destination options, each with six bytes of padding.
                let mut chain: Vec<(u8, Vec<u8>)> = vec![];
                if self.extended {
                    chain.push((0, vec![0, 0, 1, 4, 0, 0, 0, 0]));
                    chain.push((60, vec![0, 0, 1, 4, 0, 0, 0, 0]));
                }
                if let Some((at, more)) = part {
                    let header = Ipv6FragmentHeader::new(
                        IpNumber(0),
                        IpFragOffset::try_new(at).unwrap(),
                        more,
                        u32::from(self.identification),
                    );
                    let mut raw = vec![];
                    header.write(&mut raw).unwrap();
                    chain.push((44, raw));
                }
                let mut next = self.protocol();
                for (number, raw) in chain.iter_mut().rev() {
                    raw[0] = next;
                    next = *number;
                }
                let length: usize = content.len() + chain.iter().map(|(_, raw)| raw.len()).sum::<usize>();
                let header = Ipv6Header {
                    traffic_class: self.tos,
                    flow_label: Default::default(),
                    payload_length: length as u16,
                    next_header: IpNumber(next),
                    hop_limit: self.ttl,
                    source: source.octets(),
                    destination: destination.octets(),
                };
                header.write(&mut bytes).unwrap();
                for (_, raw) in &chain {
                    bytes.extend_from_slice(raw);
                }
            }
            _ => unreachable!("one family"),
        }
        bytes.extend_from_slice(content);
        bytes
    }

    /// From the IP header on.
    pub(crate) fn ip(&self) -> Vec<u8> {
        self.wrapped(&self.transport(), None)
    }

    fn framed(&self, ip: &[u8]) -> Vec<u8> {
        let kind = if self.source.is_ipv4() { [8, 0] } else { [0x86, 0xdd] };
        [&self.to, &self.from, kind.as_slice(), ip].concat()
    }

    /// From the Ethernet header on.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.framed(&self.ip())
    }

    /// In two parts, of which the first has so many bytes of transport header and payload.
    pub(crate) fn fragments(&self, first: u16) -> [Vec<u8>; 2] {
        assert_eq!(first % 8, 0);
        let content = self.transport();
        let (head, tail) = content.split_at(usize::from(first));
        [
            self.framed(&self.wrapped(head, Some((0, true)))),
            self.framed(&self.wrapped(tail, Some((first / 8, false)))),
        ]
    }

    /// The error that a router or host sends about this packet; it quotes as much as `quoted`
    /// bytes.
    pub(crate) fn error(&self, from: IpAddr, message: Message, quoted: usize) -> Self {
        let mut quote = self.ip();
        quote.truncate(quoted);
        let mut error = Packet::new(from, self.source, Body::Icmp(message, quote));
        error.ttl = 64;
        error
    }
}

/// A TCP segment.
pub(crate) fn tcp(source: IpAddr, source_port: u16, destination: IpAddr, port: u16, flags: u8) -> Packet {
    Packet::new(source, destination, Body::Tcp { ports: [source_port, port], flags, payload: vec![] })
}

/// A UDP datagram.
pub(crate) fn udp(source: IpAddr, source_port: u16, destination: IpAddr, port: u16) -> Packet {
    let payload = b"a datagram's payload".to_vec();
    Packet::new(source, destination, Body::Udp { ports: [source_port, port], checksum: true, payload })
}

/// An echo request.
pub(crate) fn echo(source: IpAddr, destination: IpAddr) -> Packet {
    Packet::new(source, destination, Body::Icmp(Message::Echo, b"an echo request's payload".to_vec()))
}
