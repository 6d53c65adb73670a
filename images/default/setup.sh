#!/bin/sh
# Runs once while the base image is built, with the image's root as $1.
set -eu
root=$1

# The default user, with password-less sudo (docs: README, "Inside a sandbox").
chroot "$root" useradd --create-home --uid 1000 --user-group --shell /bin/bash ubuntu
chroot "$root" usermod --append --groups sudo ubuntu
cat > "$root/etc/sudoers.d/dormouse" <<'SUDO'
Defaults always_set_home, !env_reset, !fqdn
ubuntu ALL=(ALL:ALL) NOPASSWD:ALL
SUDO
chmod 0440 "$root/etc/sudoers.d/dormouse"

# Where the session's repository is checked out.
mkdir -p "$root/vercel/sandbox"
chroot "$root" chown -R ubuntu:ubuntu /vercel

# Nothing in a sandbox is a service manager or a boot loader; what apt starts
# would only fail.
printf '#!/bin/sh\nexit 101\n' > "$root/usr/sbin/policy-rc.d"
chmod 0755 "$root/usr/sbin/policy-rc.d"

# Files of Git LFS become themselves where their checkout asks for it.
chroot "$root" git lfs install --system --skip-repo > /dev/null

# pip may install for the user without a virtual environment.
rm -f "$root"/usr/lib/python3*/EXTERNALLY-MANAGED

# Lists and caches only make the image larger.
rm -rf "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/* "$root"/var/log/apt "$root"/var/log/dpkg.log
rm -f "$root/etc/resolv.conf" "$root/etc/hostname"
