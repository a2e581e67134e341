#!/bin/bash
# nftables 1.0.6 on Linux 6.1 (Debian 12), family bridge: two ways to say "an IPv4 frame" disagree about a
# frame with an 802.1Q tag that crosses a bridge without vlan_filtering.
#   meta protocol ip   counts it: the kernel has moved the tag out of the frame (into the skb), and the
#                      protocol behind the tag is what is left
#   ether type ip      does not: nft makes this rule look at the tag, too, and sees 0x8100
# `ip saddr` alone is the first of the two: nft puts `meta protocol ip` before it, and the listing does not
# show that. So counters of two rules that read alike differ by what comes in tags.
# Seen (3 datagrams without, 3 with a tag):
#   untagged: meta protocol 3, ether type 3, ip saddr 3
#   tagged:   meta protocol 3, ether type 0, ip saddr 3
# Needs root, apt-get, qemu-system-x86_64. Everything runs in a VM. Fails when that changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
kernel=6.1.0-50-amd64
apt-get download -qq linux-image-$kernel=6.1.176-1 busybox-static iproute2=6.1.0-3 libbpf1 libelf1 libcap2 zlib1g \
  nftables=1.0.6-2+deb12u2 libnftables1=1.0.6-2+deb12u2 libnftnl11 libmnl0 libgmp10 libjansson4 libxtables12 \
  libedit2 libtinfo6 libbsd0 libmd0 libdb5.3 libselinux1 libpcre2-8-0 libtirpc3 libgssapi-krb5-2 libkrb5-3 \
  libk5crypto3 libcom-err2 libkrb5support0 libkeyutils1 libssl3 libc6 2>/dev/null
mkdir parts root
for package in *.deb; do dpkg -x "$package" parts; done
mkdir -p root/{proc,sys,dev,bin,lib64,modules}
cp parts/bin/busybox root/bin/
cp "$(find parts -path '*bin/ip' -type f)" root/bin/ip
cp parts/usr/sbin/nft root/bin/nft
find parts -name 'lib*.so.*' -exec cp -L {} root/lib64/ \; 2>/dev/null || true
cp -L "$(find parts -name ld-linux-x86-64.so.2 -print -quit)" root/lib64/
for module in llc stp bridge veth mrp garp 8021q libcrc32c crc32c_generic nfnetlink nf_tables nft_meta_bridge; do
  cp "$(find parts -name $module.ko)" root/modules/
done

cat >root/init <<'INIT'
#!/bin/busybox sh
/bin/busybox --install -s /bin 2>/dev/null
export PATH=/bin LD_LIBRARY_PATH=/lib64
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
for module in llc stp bridge veth mrp garp 8021q crc32c_generic libcrc32c nfnetlink nf_tables nft_meta_bridge; do
  insmod /modules/$module.ko || echo "no $module"
done
mkdir -p /run/netns /etc
/bin/ip netns add a; /bin/ip netns add b
/bin/ip link add br0 type bridge; /bin/ip link set br0 up
for side in a b; do
  /bin/ip link add port-$side type veth peer name eth0 netns $side
  /bin/ip link set port-$side master br0 up
  /bin/ip -n $side link set eth0 up
  /bin/ip -n $side link add link eth0 name eth0.7 type vlan id 7
  /bin/ip -n $side link set eth0.7 up
done
/bin/ip -n a address add 192.0.2.1/24 dev eth0; /bin/ip -n b address add 192.0.2.2/24 dev eth0
/bin/ip -n a address add 198.51.100.1/24 dev eth0.7; /bin/ip -n b address add 198.51.100.2/24 dev eth0.7
sleep 2
look() { # NAME TARGET
  /bin/nft flush ruleset
  /bin/nft -f - <<'RULES'
table bridge t {
  chain c {
    type filter hook forward priority 0; policy accept;
    iifname "port-a" meta protocol ip counter comment "meta"
    iifname "port-a" ether type ip counter comment "ether"
    iifname "port-a" ip saddr { 192.0.2.1, 198.51.100.1 } counter comment "saddr"
  }
}
RULES
  /bin/ip netns exec a ping -c 3 -W 2 $2 >/dev/null || echo "no answer: $1"
  count() { /bin/nft list ruleset | grep "comment \"$1\"" | grep -o 'packets [0-9]*' | cut -d' ' -f2; }
  echo "RESULT $1 $(count meta) $(count ether) $(count saddr)"
}
look untagged 192.0.2.2
look tagged 198.51.100.2
/bin/nft list ruleset
poweroff -f
INIT
chmod +x root/init
(cd root && find . | ../parts/bin/busybox cpio -o -H newc) 2>/dev/null | gzip -1 >initrd
timeout 300 qemu-system-x86_64 -m 512 -nographic -no-reboot -kernel "parts/boot/vmlinuz-$kernel" -initrd initrd \
  -append 'console=ttyS0 quiet panic=-1' </dev/null >console 2>&1 || true
grep -o 'RESULT.*' console | tr -d '\r' || { tail -30 console; exit 1; }
grep -q 'RESULT untagged 3 3 3' console && grep -q 'RESULT tagged 3 0 3' console
