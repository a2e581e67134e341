#!/bin/bash
# IPVS of Linux 6.1 (Debian 12), listed with ipvsadm 1.31 in one network namespace while another adds and
# deletes its own virtual servers: the list of servers that nobody touches has some of them twice and others
# not at all. The kernel hands the list out in parts and goes on at a position; the position counts the
# servers of ALL network namespaces, so what others do there moves it. Nothing says so: the answer has no
# NLM_F_DUMP_INTR and ends as usual, exit status 0.
# Whoever compares such a list with what should be there (proxies, keepalived, swarm) sees phantom changes.
# Seen (QEMU without KVM, so that counts differ from run to run; 30 lists of 1000 servers):
#   alone:        0 of 30 lists wrong
#   beside churn: 8 of 30 lists wrong; with servers twice 1, with servers missing 7
# Needs root, apt-get, qemu-system-x86_64. Everything runs in a VM. Fails when that changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
kernel=6.1.0-50-amd64
apt-get download -qq linux-image-$kernel=6.1.176-1 busybox-static ipvsadm=1:1.31-1+b1 \
  libnl-3-200=3.7.0-0.2+b1 libnl-genl-3-200=3.7.0-0.2+b1 libpopt0 libc6 2>/dev/null
mkdir parts root
for package in *.deb; do dpkg -x "$package" parts; done
mkdir -p root/{proc,sys,dev,bin,lib64,modules}
cp parts/bin/busybox root/bin/
cp parts/sbin/ipvsadm root/bin/ipvsadm
for library in libnl-3.so.200 libnl-genl-3.so.200 libpopt.so.0 libc.so.6 ld-linux-x86-64.so.2; do
  cp -L "$(find parts -name $library -print -quit)" root/lib64/
done
for module in libcrc32c crc32c_generic nf_defrag_ipv4 nf_defrag_ipv6 nf_conntrack ip_vs ip_vs_rr; do
  cp "$(find parts -name $module.ko)" root/modules/
done

cat >root/init <<'INIT'
#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin LD_LIBRARY_PATH=/lib64
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
for module in crc32c_generic libcrc32c nf_defrag_ipv4 nf_defrag_ipv6 nf_conntrack ip_vs ip_vs_rr; do insmod /modules/$module.ko; done
rules() { # VERB NETWORK COUNT
  i=0; while [ $i -lt $3 ]; do echo "$1 -t $2.$((i / 250)).$((i % 250)):80 ${4:-}"; i=$((i + 1)); done
}
rules -A 10.96 1000 '-s rr' >/mine; rules -A 10.97 250 '-s rr' >/add; rules -D 10.97 250 >/delete
cat >/churn <<'CHURN'
ip link set lo up
until [ -e /end ]; do ipvsadm -R </add; while read line; do ipvsadm $line; done </delete; done
CHURN
look() { # NAME
  wrong=0; twice=0; missing=0; n=0
  while [ $n -lt 30 ]; do
    ipvsadm -S -n | grep -o '10\.96\.[0-9.]*:80' >/told || echo "ipvsadm failed"
    all=$(wc -l </told); distinct=$(sort -u /told | wc -l)
    [ $all -ne 1000 -o $distinct -ne 1000 ] && wrong=$((wrong + 1))
    [ $all -gt $distinct ] && twice=$((twice + 1))
    [ $distinct -lt 1000 ] && missing=$((missing + 1))
    n=$((n + 1))
  done
  echo "RESULT $1 $wrong $twice $missing"
}
ip link set lo up
ipvsadm -R </mine
look alone
unshare -n sh /churn >/dev/null 2>&1 &
look churn
touch /end
echo DONE; poweroff -f
INIT
chmod +x root/init
(cd root && find . | ../parts/bin/busybox cpio -o -H newc 2>/dev/null | gzip -1) >initrd.gz
timeout 900 qemu-system-x86_64 -m 1024 -smp 2 -nographic -no-reboot -net none \
  -kernel parts/boot/vmlinuz-$kernel -initrd initrd.gz -append "console=ttyS0 quiet panic=-1" </dev/null >console 2>&1 || true
tr -d '\r' <console | grep -o 'RESULT .*' | tee seen || { tail -20 console; exit 1; }
awk '$2 == "alone" { alone = $3 } $2 == "churn" { churn = $3 } END { exit !(NR == 2 && alone == 0 && churn > 0) }' seen
