# The first process of a machine: makes its file systems and waits. Arguments: an empty directory, the machine's name.
set -eu
dir=$1
hostname "$2"
mount -t tmpfs -o mode=0755 tmpfs "$dir"
mkdir "$dir/upper" "$dir/work" "$dir/root"
# What the machine writes goes into memory, and goes with its last process.
mount -t overlay -o "lowerdir=/,upperdir=$dir/upper,workdir=$dir/work" overlay "$dir/root"
cd "$dir/root"
mount -t proc proc proc
mount --rbind /sys sys
mount --rbind /dev dev
mount -t tmpfs -o mode=0755 tmpfs run
mount -t tmpfs -o mode=1777 tmpfs tmp
# Layers of images can't lie on a root that is made of layers itself.
for own in containerd docker swarmd; do
	mkdir -p "var/lib/$own"
done
mount -t tmpfs -o mode=0711 tmpfs var/lib/containerd
mount -t tmpfs -o mode=0711 tmpfs var/lib/docker
# As on a host that systemd runs, and where no policy keeps packages from starting what they bring.
mkdir -p run/systemd/system run/lock run/sshd
rm -f usr/sbin/policy-rc.d
# The index of manual pages is not made anew with every package.
rm -f var/lib/man-db/auto-update
mkdir .outside
pivot_root . .outside
umount -l .outside
rmdir .outside
cd /
touch /run/booted
# Waiting, it also buries the processes whose parents are gone.
sleep infinity &
while :; do wait; done
