#!/bin/bash
# Services that leave a file with their process number. Runs inside, as the
# default user. `start` starts each, and fails where one does not come up.
set -u
cd /var/tmp

until_it() {
  for _ in $(seq 150); do "$@" >/dev/null 2>&1 && return; sleep 0.2; done
  echo "does not come up: $*"
  exit 1
}

start_postgres() {
  # Without pg_ctlcluster, which would look at the number itself.
  sudo -u postgres /usr/lib/postgresql/17/bin/pg_ctl --silent --no-wait --pgdata /var/lib/postgresql/17/main \
    --options '-c config_file=/etc/postgresql/17/main/postgresql.conf' --log /var/log/postgresql/test.log start
  until_it sudo -u postgres psql -qtc 'select 1'
}

start_others() {
  # Files of earlier runs that /run does not take away.
  redis-server --daemonize yes --port 6400 --dir /var/tmp --pidfile /var/tmp/redis.pid --appendonly yes >/dev/null
  until_it redis-cli -p 6400 ping

  (setsid Xvfb :99 >/var/tmp/xvfb.log 2>&1 &)
  until_it sh -c '[ "$(tr -d " " < /tmp/.X99-lock)" = "$(pgrep -x Xvfb)" ]'

  cat > app.py <<'PY'
def app(environ, start_response):
    start_response("200 OK", [])
    return [b"served"]
PY
  gunicorn --daemon --pid /var/tmp/gunicorn.pid --bind 127.0.0.1:8400 app:app
  until_it curl --silent --fail http://127.0.0.1:8400/

  (setsid chromium --headless --no-sandbox --disable-gpu --user-data-dir=/home/ubuntu/profile \
    --remote-debugging-port=9400 about:blank >/var/tmp/chromium.log 2>&1 &)
  until_it curl --silent --fail http://127.0.0.1:9400/json/version
}

case $1 in
  postgres) start_postgres ;;
  all) start_postgres; start_others ;;
esac
echo started
