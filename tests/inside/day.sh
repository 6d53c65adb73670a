#!/bin/bash
# A day's work on the default image. Runs inside, as the default user; the first
# argument says which part. What it prints last is "done".
set -euo pipefail
fail() { echo "FAIL: $*"; exit 1; }
# is WORDS COMMAND…: what the command prints has the words (a regular expression).
is() {
  local words=$1 out
  shift
  out=$("$@" 2>&1) || fail "$* exits $?: $out"
  grep -qE -- "$words" <<<"$out" || fail "$* prints $out"
}
# refused CODE WORDS COMMAND…: it exits with that code and says so.
refused() {
  local code=$1 words=$2 out status=0
  shift 2
  out=$("$@" 2>&1) || status=$?
  [ "$status" = "$code" ] || fail "$* exits $status, not $code: $out"
  grep -qE -- "$words" <<<"$out" || fail "$* prints $out"
}
until_it() {
  for _ in $(seq 100); do "$@" >/dev/null 2>&1 && return; sleep 0.2; done
  fail "does not come up: $*"
}

# What the image has, each with what it prints.
tools() {
  local files=$1
  is 'trixie' cat /etc/os-release
  is '^v24\.' node --version
  is '^v22\.' node22 --version
  is '^11\.' npm --version
  is '^11\.' npx --version
  is '^[0-9]' corepack --version
  is '^1[0-9]\.' pnpm --version
  is '^1\.22' yarn --version
  is '^1\.' bun --version
  is '^1\.' bunx --version
  is '^Python 3\.13' python --version
  is '^Python 3\.13' python3 --version
  is '^pip ' pip --version
  is '^[0-9]' pipx --version
  is '^uv ' uv --version
  is '^uvx ' uvx --version
  is 'hello' sh -c 'cd /tmp; echo "#include <iostream>
    int main() { std::cout << \"hello\"; }" > h.cc && g++ -o h h.cc && ./h'
  is 'hello' sh -c 'cd /tmp; echo "#include <stdio.h>
    int main() { puts(\"hello\"); }" > h.c && gcc -o h h.c && ./h'
  is 'built' sh -c 'cd /tmp; printf "all:\n\t@echo built\n" > Makefile && make'
  is 'cmake version' cmake --version
  is '^3\.' pkg-config --modversion openssl
  is 'git version' git --version
  is 'git-lfs' git lfs version
  is 'gh version' gh --version
  is 'gpg \(GnuPG\)' gpg --version
  is 'OpenSSH' ssh -V
  is 'ripgrep' rg --version
  is 'fdfind|fd ' fd --version
  is '^"b"$' sh -c 'echo "{\"a\":\"b\"}" | jq .a'
  is '^"?b"?$' sh -c 'echo "a: b" | yq .a'
  is 'tree v' tree --version
  is '^less ' less --version
  is 'git-commit.* - Record' man -f git-commit
  is 'VIM - Vi' vim --version
  is 'GNU nano' nano --version
  is 'tmux' tmux -V
  is 'htop' htop --version
  is 'write\(' sh -c 'strace -e write echo x 2>&1'
  is 'COMMAND' sh -c 'lsof -p $$'
  is '^3\.' sqlite3 --version
  is 'lo' ip -brief link
  is 'LISTEN|State' ss -ltn
  is 'DiG|dig' dig -v
  is 'PING 127' ping -c 1 127.0.0.1
  refused 1 'Packet filtered' ping -c 1 -W 10 192.0.2.1
  is 'rsync ' rsync --version
  is 'Zip' zip --help
  is '^42$' sh -c 'echo 6*7 | bc'
  is 'en_US.utf8' locale -a
  is 'usage: nc' sh -c 'nc -h 2>&1 || true'
  is '^ubuntu$' id -un
  is '^main$' git config init.defaultBranch
  # What a server of this host may give.
  is "^$files\$" sh -c 'ulimit -n'
  is "^$files\$" sudo sh -c 'ulimit -n'
  is '^Architecture: +x86_64' lscpu
  is '^[1-9]' nproc
  lsblk > /dev/null || fail "lsblk exits $?"
  # Where Debian's is executable.
  is 'ran' sh -c 'printf "#!/bin/sh\necho ran\n" > /dev/shm/x && chmod +x /dev/shm/x && /dev/shm/x; rm /dev/shm/x'
  is '^red$' tmux new-session -d -s t 'sleep 60' \; set-environment -g C red \; run-shell 'echo red'
  tmux kill-server
  refused 125 'containers do not run inside a sandbox' docker run hello-world
  refused 1 'Operation not permitted|unshare failed' unshare --user true
  # What agents' own sandboxes are made of: a rule that nothing may be written.
  is '^Permission denied$' python - <<'PY'
import ctypes, os, struct
call = ctypes.CDLL(None, use_errno=True).syscall
writes = ctypes.create_string_buffer(struct.pack("Q", 1 << 1))
rules = call(444, writes, 8, 0)
assert rules >= 0, os.strerror(ctypes.get_errno())
assert ctypes.CDLL(None).prctl(38, 1, 0, 0, 0) == 0
assert call(446, rules, 0) == 0, os.strerror(ctypes.get_errno())
try:
    open("/tmp/landlocked", "w")
except OSError as error:
    print(error.strerror)
PY
}

# Installs without sudo, from the registries.
install() {
  cd /tmp
  npm install --global --silent cowsay@1.6.0
  pip install --quiet --user --no-warn-script-location httpie==3.2.4
  pipx install --quiet pycowsay==0.0.0.2
  uv tool install --quiet ruff==0.14.0
  pnpm add --global --silent semver@7.7.2
  yarn global add --silent mkdirp@3.0.1
  bun add --global --silent json5@2.2.3 > /dev/null
  mkdir -p /tmp/py && cd /tmp/py && python -m venv .venv && .venv/bin/pip install --quiet six==1.17.0
  is '1.17.0' .venv/bin/python -c 'import six; print(six.__version__)'
  uv --quiet init --bare app && cd app && uv --quiet add six==1.17.0
  is '1.17.0' uv --quiet run python -c 'import six; print(six.__version__)'
  sudo DEBIAN_FRONTEND=noninteractive apt-get -qq update
  sudo DEBIAN_FRONTEND=noninteractive apt-get -qq -y -o Dpkg::Use-Pty=0 install --no-install-recommends \
    nginx-light openssh-server cron postgresql redis-server golang-go cargo gdb default-jre-headless > /tmp/apt.log 2>&1 || fail "apt: $(tail -5 /tmp/apt.log)"
  mkdir -p /tmp/go && cd /tmp/go && printf 'module example.test/gotool\n' > go.mod &&
    printf 'package main\nfunc main() { println("from go") }\n' > main.go && go install .
  mkdir -p /tmp/rust/src && cd /tmp/rust && printf '[package]\nname = "rusttool"\nversion = "1.0.0"\nedition = "2021"\n' > Cargo.toml &&
    printf 'fn main() { println!("from rust") }\n' > src/main.rs && cargo install --quiet --path .
  is 'exited normally' gdb -nx -batch -ex run --args /bin/true
  # A quarter of the sandbox's memory (4 GiB), not of the host's.
  is ' MaxHeapSize += 10[0-9]{8}' java -XX:+PrintFlagsFinal -version
}

# They are found.
programs() {
  is 'moo' cowsay moo
  is '^3\.2\.4' http --version
  is 'moo' pycowsay moo
  is 'ruff 0.14.0' ruff --version
  is '^2.0.0$' semver -r '>1' 2.0.0 1.0.0
  is '^3\.' mkdirp --version
  is '^2\.2\.3' json5 --version
  is 'from go' gotool
  is 'from rust' rusttool
}

# Services of Debian, by `service` where they have one.
services() {
  is 'nginx' sudo service nginx start
  until_it curl -sf http://127.0.0.1:80/
  is 'Welcome to nginx' curl -sf http://127.0.0.1/
  sudo mkdir -p /run/sshd
  sudo service ssh start > /dev/null
  [ -e ~/.ssh/id_ed25519 ] || { ssh-keygen -q -t ed25519 -N '' -f ~/.ssh/id_ed25519; cp ~/.ssh/id_ed25519.pub ~/.ssh/authorized_keys; }
  until_it nc -z 127.0.0.1 22
  is '^ubuntu by ssh$' ssh -o StrictHostKeyChecking=accept-new -o BatchMode=yes 127.0.0.1 'echo $(id -un) by ssh'
  # A login finds what the user installed.
  is 'moo' ssh -o BatchMode=yes 127.0.0.1 cowsay moo
  sudo service postgresql start > /dev/null
  until_it sudo -u postgres psql -qtc 'select 1'
  sudo -u postgres psql -qtc 'create table if not exists t (n int)' -c 'insert into t values (1)'
  sudo service redis-server start > /dev/null
  until_it redis-cli ping
  is 'OK' redis-cli set key value
  redis-cli save > /dev/null
  rm -f /tmp/cron
  echo '* * * * * touch /tmp/cron' | crontab -
  sudo service cron start > /dev/null
  is 'cron is running|running' sudo service cron status
}

# What services kept, after a stop and their start.
kept() {
  is '^ *2$' sudo -u postgres psql -qtc 'select count(*) from t'
  is '^value$' redis-cli get key
}

cron() {
  for _ in $(seq 150); do [ -e /tmp/cron ] && return; sleep 0.5; done
  fail "cron does nothing"
}

"$@"
echo "done"
