# Sourced: starts ds4-server with the demo model, and nothing of whoever runs this: no model, key or kept
# prompts of theirs are read or written. Sets DS4_URL. DS4_SERVER names another program.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
target=${CARGO_TARGET_DIR:-target}
server=${DS4_SERVER:-$target/release/ds4-server}
case $server in /*) ;; *) server=$root/$server ;; esac
[ -x "$server" ] || { echo "no $server: build it with cargo build --release" >&2; exit 1; }

scratch=$(mktemp -d)
(cd "$scratch" && exec env -i PATH="$PATH" HOME="$scratch" "$server" --port 0 2> "$scratch/log") &
server_pid=$!

# Ends it, and says with which code it ended.
stop_server() {
    trap - EXIT
    kill "$server_pid" 2> /dev/null || true
    local code=0
    wait "$server_pid" || code=$?
    [ $code = 0 ] || cat "$scratch/log" >&2
    rm -rf "$scratch"
    return $code
}
trap 'code=$?; stop_server || true; exit $code' EXIT

DS4_URL=
for _ in $(seq 600); do
    DS4_URL=$(sed -n 's/.*listening on \(http:[^ ]*\).*/\1/p' "$scratch/log" 2> /dev/null || true)
    [ -n "$DS4_URL" ] && break
    kill -0 "$server_pid" 2> /dev/null || break
    sleep 0.1
done
[ -n "$DS4_URL" ] || { echo "the server has not started" >&2; cat "$scratch/log" >&2; exit 1; }
export DS4_URL NO_PROXY=127.0.0.1 no_proxy=127.0.0.1
