#!/bin/sh
# Runs once while the packages of a recipe become a root file system, with its root as $1
# and the search path of commands as $2.
# What a recipe does not have is left out.
set -eu
root=$1
path=$2
has() { [ -e "$root/$1" ]; }

# The default user, with password-less sudo that keeps the environment and its search path
# (docs: README, "Inside a sandbox").
chroot "$root" useradd --create-home --uid 1000 --user-group --shell /bin/bash ubuntu
chroot "$root" usermod --append --groups sudo ubuntu
cat > "$root/etc/sudoers.d/dormouse" <<'SUDO'
Defaults always_set_home, !env_reset, !fqdn, !use_pty, !secure_path
Defaults env_delete -= "PYTHONUSERBASE PYTHONPATH"
ubuntu ALL=(ALL:ALL) NOPASSWD:ALL
SUDO
chmod 0440 "$root/etc/sudoers.d/dormouse"

# Where the session's repository is checked out, and where the platform's clients look for
# programs of their own.
mkdir -p "$root/vercel/sandbox" "$root/vercel/bin"
# Logins by sshd and su, and jobs of cron, do not go through the server (pam_env(8)).
printf 'PATH="%s"\n' "$path" > "$root/etc/environment"
# Where package managers install for the user, who needs no sudo then.
mkdir -p "$root/home/ubuntu/.local/bin" "$root/home/ubuntu/.npm-global/bin"
printf 'prefix=${HOME}/.npm-global\nupdate-notifier=false\nfund=false\n' > "$root/home/ubuntu/.npmrc"
chroot "$root" chown -R ubuntu:ubuntu /vercel /home/ubuntu

# Nothing in a sandbox is a service manager or a boot loader; what apt starts
# would only fail.
printf '#!/bin/sh\nexit 101\n' > "$root/usr/sbin/policy-rc.d"
chmod 0755 "$root/usr/sbin/policy-rc.d"

chroot "$root" git config --system init.defaultBranch main
chroot "$root" git config --system advice.detachedHead false
# Files of Git LFS become themselves where their checkout asks for it.
chroot "$root" git lfs install --system --skip-repo > /dev/null

# pip may install for the user without a virtual environment.
rm -f "$root"/usr/lib/python3*/EXTERNALLY-MANAGED

# Names that everybody else uses.
! has usr/bin/fdfind || ln -sf /usr/bin/fdfind "$root/usr/local/bin/fd"
has usr/bin/vim || ! has usr/bin/vim.tiny || ln -sf /usr/bin/vim.tiny "$root/usr/local/bin/vim"

if has usr/sbin/locale-gen; then
  echo 'en_US.UTF-8 UTF-8' > "$root/etc/locale.gen"
  chroot "$root" locale-gen > /dev/null
fi

# A browser's own sandbox needs user namespaces, which no sandbox of ours has.
! has etc/chromium.d || echo 'export CHROMIUM_FLAGS="$CHROMIUM_FLAGS --no-sandbox"' > "$root/etc/chromium.d/dormouse"

# Containers need what a sandbox does not give: said in a sentence, not in a stack trace.
if ! has usr/bin/docker; then
  for name in docker podman; do
    cat > "$root/usr/local/bin/$name" <<DOCKER
#!/bin/sh
echo "$name: containers do not run inside a sandbox: it is one itself, without the rights to make more. Install what you need with apt-get, or have the image in the sandbox's place: dormouse image build --from IMAGE" >&2
exit 125
DOCKER
    chmod 0755 "$root/usr/local/bin/$name"
  done
fi

# Lists and caches only make the image larger.
rm -rf "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/* "$root"/var/log/apt "$root"/var/log/dpkg.log
rm -rf "$root"/var/cache/debconf/*-old "$root"/var/lib/dpkg/*-old
rm -f "$root/etc/resolv.conf" "$root/etc/hostname" "$root/etc/hosts"
