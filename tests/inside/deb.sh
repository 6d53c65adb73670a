#!/bin/bash
# The Debian package on a machine with systemd: install, upgrade beside a running
# sandbox, remove, install again, purge. Packages are in /test/deb.
set -euo pipefail
export DORMOUSE_SERVER=http://127.0.0.1:7700 DEBIAN_FRONTEND=noninteractive HOME=/root
config=(--config /etc/dormouse/config.toml --data-dir /var/lib/dormouse)
fail() { echo "FAIL: $*"; exit 1; }
until_it() {
  for _ in $(seq 600); do "$@" >/dev/null 2>&1 && return; sleep 0.2; done
  journalctl --no-pager -u dormouse | tail -20
  fail "$*"
}
healthy() { curl --silent --fail "$DORMOUSE_SERVER/healthz"; }
pid() { systemctl show --property MainPID --value dormouse; }

dpkg --install /test/deb/first.deb
until_it systemctl is-active dormouse
# Without an image it says what it waits for.
until_it curl --silent "$DORMOUSE_SERVER/healthz"
said=$(curl --silent --write-out ' %{http_code}' "$DORMOUSE_SERVER/healthz")
[[ $said == *image*503 ]] || fail "without an image: $said"
dormouse image build --recipe node24 --name default "${config[@]}"
until_it healthy
account=$(dormouse account create Test "${config[@]}")
DORMOUSE_KEY=$(dormouse key create --account "$account" "${config[@]}")
export DORMOUSE_KEY
dormouse sandbox create box
dormouse sandbox exec box -- sh -c 'echo kept > /vercel/sandbox/file'
dormouse sandbox exec -d box -- sleep 4711
before=$(dormouse sandbox exec box -- pgrep -x sleep)
first=$(pid)
echo '# a change of the operator' >>/etc/dormouse/config.toml

dpkg --install /test/deb/second.deb
until_it healthy
[ "$(pid)" != "$first" ] || fail "the upgrade did not restart the server"
[ "$(dormouse sandbox exec box -- pgrep -x sleep)" = "$before" ] || fail "the upgrade ended a command"
grep -q 'change of the operator' /etc/dormouse/config.toml || fail "the upgrade took the configuration back"

# What is killed comes back.
kill -KILL "$(pid)"
until_it healthy
[ "$(dormouse sandbox exec box -- pgrep -x sleep)" = "$before" ] || fail "a crash ended a command"

dpkg --remove dormouse
[ ! -e /usr/bin/dormouse ] || fail "the program is left"
! systemctl is-active dormouse >/dev/null || fail "the server is left"
! grep -q /var/lib/dormouse /proc/self/mounts || fail "mounts are left: $(grep /var/lib/dormouse /proc/self/mounts)"
! pgrep -f dormouse-agent >/dev/null || fail "sandboxes are left"
[ -z "$(ls /run/netns 2>/dev/null)" ] || fail "name spaces are left"
[ -z "$(find /sys/fs/cgroup -maxdepth 2 -name 'dormouse*' -not -name '*.service')" ] || fail "cgroups are left"

dpkg --install /test/deb/second.deb
until_it healthy
[ "$(dormouse sandbox exec box -- cat file)" = kept ] || fail "files are gone"

dpkg --purge dormouse
for path in /var/lib/dormouse /etc/dormouse /usr/bin/dormouse; do
  [ ! -e "$path" ] || fail "$path is left"
done
echo "all as it should be"
