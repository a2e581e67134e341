#!/bin/bash
# tcpdump 4.99.3 with libpcap 1.10.3 (Debian 12), `--immediate-mode` on a veth interface as the kernel makes
# it: the buffer of 2 MiB holds 32 packets, however small they are. A tcpdump that gets no processor for a
# moment loses the rest: of 200 datagrams of 64 bytes it writes 32.
# Immediate mode uses TPACKET_V2, whose slots have one size. For an interface with segmentation offload
# libpcap makes them as large as the snapshot length of tcpdump allows, 64 KiB, so 2 MiB are 32 slots.
# Without immediate mode (TPACKET_V3, slots of many packets), or with `-s 128`, all 200 are kept.
# Seen on Linux 6.18:
#   --immediate-mode:        32 captured, 168 dropped by kernel
#   without:                 200 captured, 0 dropped by kernel
#   --immediate-mode -s 128: 200 captured, 0 dropped by kernel
# Needs root (network namespaces, removed again), apt-get, iproute2, python3. Fails when that changes.
set -euo pipefail
work=$(mktemp -d)
name=finding-$$
trap 'ip netns del $name-a 2>/dev/null || true; ip netns del $name-b 2>/dev/null || true; rm -rf "$work"' EXIT
cd "$work"
apt-get download -qq tcpdump=4.99.3-1 libpcap0.8=1.10.3-1 2>/dev/null
for package in *.deb; do dpkg -x "$package" root; done
export LD_LIBRARY_PATH=$(dirname "$(find "$work/root" -name 'libpcap.so.0.8')")
tcpdump=$work/root/usr/bin/tcpdump
"$tcpdump" --version 2>&1 | head -2

ip netns add $name-a
ip netns add $name-b
ip -n $name-a link add eth0 type veth peer name eth0 netns $name-b
ip -n $name-a addr add 192.0.2.1/30 dev eth0
ip -n $name-b addr add 192.0.2.2/30 dev eth0
ip -n $name-a link set eth0 up
ip -n $name-b link set eth0 up

# Stops tcpdump, sends 200 datagrams to a port where nobody listens, and lets tcpdump go on.
count() {
  ip netns exec $name-b "$tcpdump" -i eth0 -n -U -Z root "$@" -w file 'udp dst port 9' 2>said &
  local process=$!
  until grep -q listening said 2>/dev/null; do sleep 0.1; done
  kill -STOP $process
  ip netns exec $name-a python3 -c '
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for _ in range(200): s.sendto(bytes(64), ("192.0.2.2", 9))'
  kill -CONT $process
  sleep 2
  kill -INT $process
  wait $process || true
  awk '/packets? captured/ { c = $1 } /dropped by kernel/ { d = $1 } END { print c " captured, " d " dropped by kernel" }' said
}
{
  echo "--immediate-mode:        $(count --immediate-mode)"
  echo "without:                 $(count)"
  echo "--immediate-mode -s 128: $(count --immediate-mode -s 128)"
} | tee seen
diff - seen <<'EXPECTED'
--immediate-mode:        32 captured, 168 dropped by kernel
without:                 200 captured, 0 dropped by kernel
--immediate-mode -s 128: 200 captured, 0 dropped by kernel
EXPECTED
