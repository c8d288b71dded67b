#!/usr/bin/env bash
# Run COMMAND inside a small virtual machine that has a software RDMA device (soft-RoCE, `rxe0`).
#
#   softroce-vm.sh [--mem MiB] [--cpus N] [--timeout S] -- COMMAND [ARG...]
#
# This machine's files are visible there, copy-on-write: nothing that COMMAND writes stays, except under $OUT, which
# comes back to $OUT here. Its output is shown as it comes. Exits with COMMAND's status; 124 when the machine ran past
# its time limit, 125 when it did not come up.
#
# No RDMA hardware and no /dev/kvm is needed: the processor is emulated, so that figures mean something only against
# another program in the same guest. SOFTROCE_ACCEL=kvm tries KVM, which may hang inside other virtual machines.
# Needs root, Debian or a child of it on x86-64, and the packages that `run.sh` installs. The kernel's package is
# downloaded once, into $SOFTROCE_CACHE, and unpacked, never installed: the kernel of a container's host often has no
# soft-RoCE, and Debian's cloud flavour has none either.
set -euo pipefail
export PATH=$PATH:/usr/sbin:/sbin

usage() { sed -n '2,16p' "$0"; exit 2; }
fail() { echo "softroce-vm: $*" >&2; exit 125; }

mem=2048 cpus=2 limit=600
while [ $# -gt 0 ]; do
  case $1 in
    --mem) mem=$2; shift 2 ;;
    --cpus) cpus=$2; shift 2 ;;
    --timeout) limit=$2; shift 2 ;;
    --) shift; break ;;
    *) usage ;;
  esac
done
[ $# -gt 0 ] || usage
[ "$(id -u)" = 0 ] || fail "must run as root, to show the guest all files"
[ "$(uname -m)" = x86_64 ] || fail "is made for x86-64, and this is $(uname -m)"
for tool in qemu-system-x86_64 busybox depmod modprobe cpio rdma ip setpriv apt-get dpkg-deb; do
  command -v "$tool" >/dev/null || fail "$tool is missing: install the packages that $(dirname "$0")/run.sh lists"
done

cache=${SOFTROCE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/softroce-vm}
accel=${SOFTROCE_ACCEL:-tcg}
if [ "$accel" = tcg ]; then accel=tcg,thread=multi; fi
mkdir -p "$cache"
work=$(mktemp -d)
machine='' tailer=''
cleanup() {
  for pid in $machine $tailer; do kill "$pid" 2>/dev/null || true; done
  wait 2>/dev/null || true
  rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM
mkdir "$work/out"

# 1. A kernel with rdma_rxe. The lock makes several runs at once unpack it once.
(
  flock 9
  if ! ls "$cache"/kernel/boot/vmlinuz-* >/dev/null 2>&1; then
    package=$(apt-cache depends linux-image-amd64 | awk '/Depends:/ {print $2; exit}')
    [ -n "$package" ] || { echo "apt does not know linux-image-amd64: run apt-get update" >&2; exit 1; }
    rm -rf "$cache/part" && mkdir "$cache/part"
    cd "$cache/part"
    apt-get download -qq -o APT::Sandbox::User=root "$package"
    dpkg-deb -x "$package"_*.deb tree
    depmod -b tree "$(basename tree/lib/modules/*)"
    rm -rf "$cache/kernel"
    mv tree "$cache/kernel"
    rm -rf "$cache/part"
  fi
) 9>"$cache/lock" || fail "the kernel's package could not be had"
kernel=$(ls "$cache"/kernel/boot/vmlinuz-*)
version=$(basename "$cache"/kernel/lib/modules/*)

# 2. An initramfs: busybox, and the modules that mount this machine's files. Everything else comes from there.
init=$work/init
mkdir -p "$init"/{bin,proc,sys,dev,ro,rw,new,mods}
cp "$(command -v busybox)" "$init/bin/busybox"
for module in virtio_pci 9pnet_virtio 9p overlay; do
  modprobe -d "$cache/kernel" -S "$version" --show-depends "$module"
done | awk '/^insmod/ && !seen[$2]++ {print $2}' > "$work/order"
while read -r file; do cp "$file" "$init/mods/"; basename "$file"; done < "$work/order" > "$init/mods/order"
cat > "$init/init" <<'INIT'
#!/bin/busybox sh
/bin/busybox --install -s /bin; export PATH=/bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
while read -r module; do insmod "/mods/$module"; done < /mods/order
share=trans=virtio,version=9p2000.L,msize=524288
mount -t 9p -o $share,ro,cache=loose host /ro && mount -t tmpfs tmpfs /rw && mkdir /rw/upper /rw/work &&
  mount -t overlay -o lowerdir=/ro,upperdir=/rw/upper,workdir=/rw/work overlay /new ||
  { echo "no root file system"; poweroff -f; }
mount -t proc proc /new/proc; mount -t sysfs sys /new/sys; mount -t devtmpfs dev /new/dev
mkdir -p /new/dev/shm /new/dev/pts /new/softroce
mount -t tmpfs tmpfs /new/dev/shm; mount -t devpts devpts /new/dev/pts
mount -t tmpfs tmpfs /new/run  # /tmp stays as it is: the checkout may be there
mount -t 9p -o $share out /new/softroce
exec chroot /new /bin/bash /softroce/guest.sh
INIT
chmod +x "$init/init"
(cd "$init" && find . | cpio -o -H newc --quiet | gzip -1) > "$work/initrd.gz"

# 3. What the guest does. crc32_generic comes first: without it the link is refused with "No such file or directory".
cat > "$work/out/guest.sh" <<GUEST
export PATH=$(printf %q "$PATH") HOME=$(printf %q "$HOME") OUT=/softroce
end() { echo "\$1" > /softroce/status; sync; echo o > /proc/sysrq-trigger; sleep 9; }
for module in crc32_generic veth rdma_rxe ib_uverbs rdma_ucm; do
  modprobe -d $(printf %q "$cache/kernel") -S $version \$module
done
ip link set lo up
ip link add veth0 type veth peer name veth1 && ip addr add 192.0.2.1/24 dev veth0
ip link set veth0 mtu 9000 up && ip link set veth1 mtu 9000 up
rdma link add rxe0 type rxe netdev veth0 || end 125
mkdir -p /dev/infiniband
for try in 1 2 3 4 5 6 7 8 9 10; do [ -e /dev/infiniband/uverbs0 ] && break; sleep 0.1; done
cd $(printf %q "$PWD")
ulimit -l unlimited
$(printf '%q ' "$@") > /softroce/stdout 2>&1 < /dev/null
end \$?
GUEST

# 4. Run it. The machine ends with this script, however that ends.
touch "$work/out/stdout"
tail -n +1 -f "$work/out/stdout" & tailer=$!
rc=0
setpriv --pdeathsig TERM timeout "$limit" \
  qemu-system-x86_64 -accel "$accel" -cpu max -m "$mem" -smp "$cpus" -nographic -no-reboot -nic none \
  -kernel "$kernel" -initrd "$work/initrd.gz" -append "console=ttyS0 panic=-1 quiet edd=off" \
  -virtfs local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap \
  -virtfs local,path="$work/out",mount_tag=out,security_model=none > "$work/console" 2>&1 </dev/null & machine=$!
wait "$machine" || rc=$?
machine=''
sleep 0.3 # the tail's last look
kill "$tailer" 2>/dev/null || true
wait "$tailer" 2>/dev/null || true
tailer=''
if [ -n "${OUT:-}" ]; then
  mkdir -p "$OUT"
  (cd "$work/out" && rm -f guest.sh && cp -r . "$OUT/")
fi
if [ -s "$work/out/status" ]; then exit "$(cat "$work/out/status")"; fi
echo "softroce-vm: the machine did not finish (qemu: $rc); the end of its console:" >&2
tail -n 30 "$work/console" >&2
[ "$rc" = 124 ] && exit 124
exit 125
