#!/bin/busybox sh
# The first process of a VM. It makes this machine's root (9p, read-only) the lower layer of one in memory, at /new, and
# then runs there what the control directory asks for. Files of that directory: control.rs.
export PATH=/bin:/sbin HOME=/root TERM=linux
/bin/busybox --install -s /bin

fail() {
	echo "sluice-vm: $1"
	poweroff -f
}

share() { # NAME DIRECTORY OPTIONS
	mkdir -p "$2"
	mount -t 9p -o "trans=virtio,version=9p2000.L,msize=512000,$3" "$1" "$2" || fail "no share $1"
}

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs shm /dev/shm
for module in /modules/*; do insmod "$module" || fail "module $module"; done

share control /control cache=none
. /control/boot
hostname "$name"
# Nothing here changes the lower layer, so that it may be cached.
share root /host ro,cache=loose
mkdir -p /layer /new /bare
mount -t tmpfs layer /layer
mkdir /layer/upper /layer/work
mount -t overlay -o lowerdir=/host,upperdir=/layer/upper,workdir=/layer/work root /new || fail "no root"
mount --bind /new /bare

for directory in proc sys dev; do mount --rbind /$directory /new/$directory; done
mount -t cgroup2 cgroup /new/sys/fs/cgroup
mount -t bpf bpf /new/sys/fs/bpf
mount -t tmpfs -o mode=755 run /new/run
mount -t tmpfs -o mode=1777 tmp /new/tmp
mkdir -p /new/run/lock /new/lib/modules
mount --bind "/bare$modules" /new/lib/modules || fail "no modules at $modules"
printf '%s\n' "$keep" | while read -r directory; do
	[ -z "$directory" ] && continue
	mkdir -p "/new$directory"
	mount --bind "/bare$directory" "/new$directory" || fail "no directory $directory"
done
[ -n "$out" ] && share out /new/out cache=none

ip link set lo up
ulimit -n 1048576
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

if [ -n "$shell" ]; then
	# Not the console, which has no name in there.
	exec </dev/ttyS0 >/dev/ttyS0 2>&1
	/bin/stty rows "$rows" cols "$columns"
	# A terminal needs a session that it controls.
	/bin/setsid -c /bin/chroot /new /bin/sh -c "cd \"\$0\"; exec \"\$1\" -i" "$directory_of_shell" "$shell"
	/bin/poweroff -f
fi

run() { # NUMBER
	# What a shell runs in the background ignores two signals, which is inherited.
	/bin/setsid /bin/chroot /new /usr/bin/env --default-signal=INT,QUIT /bin/sh -c "$(/bin/cat "/control/$1.sh")" \
		</dev/null >"/control/$1.out" 2>"/control/$1.err" &
	echo $! >"/$1.pid"
	wait $!
	echo $? >"/control/$1.tmp"
	/bin/mv "/control/$1.tmp" "/control/$1.status"
}

: >/control/ready
next=1
while :; do
	if [ -e "/control/$next.sh" ]; then
		run "$next" &
		next=$((next + 1))
		continue
	fi
	for request in /control/*.kill; do
		[ -e "$request" ] || continue
		number=${request##*/}
		pid=/${number%.kill}.pid
		# The command may not have begun yet.
		[ -e "$pid" ] || continue
		kill -9 "-$(/bin/cat "$pid")"
		/bin/rm "$request"
	done
	/bin/sleep 0.1
done
