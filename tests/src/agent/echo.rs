//! Echo servers: one line of JSON for each line or datagram, with whom the server saw and where.

use std::io::{self, BufRead, BufReader, IoSlice, IoSliceMut, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::thread;

use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockProtocol, SockType,
    SockaddrStorage, bind, listen as listen_on, recvmsg, sendmsg, setsockopt, socket, sockopt,
};

use super::dial::stream_socket;
use super::protocol::Answer;
use super::trial::{Wish, fill, let_cut, wish};
use crate::target::{Listen, Proto};

/// Starts an echo server for both families; it runs as long as the process.
pub fn listen(listen: Listen, name: String) -> io::Result<()> {
    match listen.proto {
        Proto::Udp => {
            let v4 = udp_socket(listen.port, false)?;
            let v6 = udp_socket(listen.port, true)?;
            let other = name.clone();
            thread::spawn(move || answer_datagrams(&v4, &other));
            thread::spawn(move || answer_datagrams(&v6, &name));
        }
        Proto::Tcp | Proto::Sctp => {
            let fd = stream_socket(listen.proto, true)?;
            setsockopt(&fd, sockopt::ReuseAddr, &true)?;
            setsockopt(&fd, sockopt::Ipv6V6Only, &false)?;
            bind(fd.as_raw_fd(), &any(listen.port, true))?;
            listen_on(&fd, Backlog::new(1024)?)?;
            let listener = TcpListener::from(fd);
            thread::spawn(move || accept(&listener, &name));
        }
        Proto::Icmp => return Err(io::Error::other("nothing listens on icmp")),
    }
    Ok(())
}

fn any(port: u16, v6: bool) -> SockaddrStorage {
    let addr = if v6 { IpAddr::V6(Ipv6Addr::UNSPECIFIED) } else { IpAddr::V4(Ipv4Addr::UNSPECIFIED) };
    SockaddrStorage::from(SocketAddr::new(addr, port))
}

fn accept(listener: &TcpListener, name: &str) {
    for stream in listener.incoming() {
        // A connection that went away before it was accepted is not the server's concern.
        let Ok(stream) = stream else { continue };
        let name = name.to_owned();
        thread::spawn(move || drop(answer_lines(&stream, name)));
    }
}

fn answer_lines(mut stream: &TcpStream, name: String) -> io::Result<()> {
    let line = answer(name, stream.peer_addr()?, stream.local_addr()?)?;
    for request in BufReader::new(stream).lines() {
        match wish(request?.as_bytes()) {
            Some(wish) => stream.write_all(&[fill(&line, wish), b"\n".to_vec()].concat())?,
            None => stream.write_all(line.as_bytes())?,
        }
    }
    Ok(())
}

fn answer(pod: String, peer: SocketAddr, local: SocketAddr) -> io::Result<String> {
    let answer = Answer {
        pod,
        peer: peer.ip().to_canonical(),
        peer_port: peer.port(),
        local: local.ip().to_canonical(),
        local_port: local.port(),
    };
    Ok(serde_json::to_string(&answer)? + "\n")
}

fn udp_socket(port: u16, v6: bool) -> io::Result<UdpSocket> {
    let family = if v6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
    let fd = socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, SockProtocol::Udp)?;
    if v6 {
        setsockopt(&fd, sockopt::Ipv6V6Only, &true)?;
        setsockopt(&fd, sockopt::Ipv6RecvPacketInfo, &true)?;
    } else {
        setsockopt(&fd, sockopt::Ipv4PacketInfo, &true)?;
    }
    bind(fd.as_raw_fd(), &any(port, v6))?;
    Ok(UdpSocket::from(fd))
}

fn answer_datagrams(socket: &UdpSocket, name: &str) {
    loop {
        // Errors here are ICMP messages about earlier answers, whose clients are gone.
        drop(answer_datagram(socket, name));
    }
}

/// Answers one datagram from the very address that it was sent to, which a socket bound to any
/// address would not do.
fn answer_datagram(socket: &UdpSocket, name: &str) -> io::Result<()> {
    let mut buffer = vec![0; 65_536];
    let mut parts = [IoSliceMut::new(&mut buffer)];
    let mut space = nix::cmsg_space!(libc::in6_pktinfo, libc::in_pktinfo);
    let message =
        recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::empty())?;
    let port = socket.local_addr()?.port();
    let asked = message.iovs().next().and_then(wish);
    let peer_address =
        message.address.ok_or_else(|| io::Error::other("a datagram without a source address"))?;
    let peer = peer_address
        .as_sockaddr_in()
        .map(|addr| SocketAddr::from(std::net::SocketAddrV4::from(*addr)))
        .or_else(|| peer_address.as_sockaddr_in6().map(|addr| std::net::SocketAddrV6::from(*addr).into()))
        .ok_or_else(|| io::Error::other("a datagram from an unknown family"))?;
    for control in message.cmsgs()? {
        match control {
            ControlMessageOwned::Ipv4PacketInfo(mut info) => {
                let local = Ipv4Addr::from(u32::from_be(info.ipi_addr.s_addr));
                let line = reply(socket, name, peer, SocketAddr::from((local, port)), asked)?;
                info.ipi_ifindex = 0;
                info.ipi_spec_dst = info.ipi_addr;
                let control = [ControlMessage::Ipv4PacketInfo(&info)];
                let parts = [IoSlice::new(&line)];
                sendmsg(socket.as_raw_fd(), &parts, &control, MsgFlags::empty(), Some(&peer_address))?;
            }
            ControlMessageOwned::Ipv6PacketInfo(mut info) => {
                let local = Ipv6Addr::from(info.ipi6_addr.s6_addr);
                let line = reply(socket, name, peer, SocketAddr::from((local, port)), asked)?;
                info.ipi6_ifindex = 0;
                let control = [ControlMessage::Ipv6PacketInfo(&info)];
                let parts = [IoSlice::new(&line)];
                sendmsg(socket.as_raw_fd(), &parts, &control, MsgFlags::empty(), Some(&peer_address))?;
            }
            _ => {}
        }
    }
    Ok(())
}

/// The answer, as the question wants it.
fn reply(
    socket: &UdpSocket,
    name: &str,
    peer: SocketAddr,
    local: SocketAddr,
    asked: Option<Wish>,
) -> io::Result<Vec<u8>> {
    let line = answer(name.to_owned(), peer, local)?;
    let Some(asked) = asked else { return Ok(line.into_bytes()) };
    let_cut(socket.as_raw_fd(), local.is_ipv6(), !asked.whole)?;
    Ok(fill(&line, asked))
}
