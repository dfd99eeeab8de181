#!/usr/bin/env bash
# test_systemd.sh - the installed units under a systemd of their own: a Debian of debootstrap, booted in namespaces
# (processes, mounts, network, cgroups), where nothing of this machine is in reach. The confined service answers, a
# reload and the watchdog do what they should, and a stop with eight streams open loses none. Skips where it is not root
# or tools are missing. Needs the demo (CPETD_MODEL, CPETD_PETS) and a build with libsystemd (CPETD).
set -uo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cpetd=${CPETD:-$root/build/cpetd} model=${CPETD_MODEL:-$root/var/models/smollm2-135m-instruct-int8} pets=${CPETD_PETS:-$root/var/pets}
work=$root/var/docker box=$root/var/systemd group='' outer='' failed=0
. "$root/tests/e2e/debian_base.sh"

skip() {
    echo "skip test_systemd: $*"
    exit 0
}
((EUID == 0)) || skip "needs root"
for tool in debootstrap unshare nsenter; do
    command -v "$tool" >/dev/null || skip "$tool is not installed"
done
[[ $(ldd "$cpetd") == *libsystemd* ]] || skip "cpetd is built without libsystemd"
[[ -d $model && -e $pets/extract.pet ]] || skip "the demo is not there"
unified=$(awk '$3 == "cgroup2" { print $2; exit }' /proc/mounts)
[[ $unified ]] || skip "no cgroup2"

check() {
    local name=$1
    shift
    if "$@"; then echo "ok test_systemd/$name"; else
        echo "FAIL test_systemd/$name"
        failed=1
    fi
}

# The manager's first process; it takes everything in its namespace with it.
init() { pgrep -P "$outer" | head -n 1; }

finish() {
    local pid
    [[ $outer ]] && pid=$(init) && kill -KILL "$pid"
    [[ $outer ]] && wait "$outer" 2>/dev/null
    [[ $group ]] && find "$group" -depth -type d -exec rmdir {} + 2>/dev/null
}
trap finish EXIT

install_all() {
    local libs prefix
    debian_base "$work" || return 1
    rm -rf "$box" && mkdir -p "$box" && tar -C "$box" -xf "$work/base.tar" || return 1
    libs=$(ldd "${cpetd%d}" "$cpetd" | sed -n 's|.*/\(lib[^ /]*\) (.*|*/\1|p' | sort -u | xargs dpkg-query -S | cut -d: -f1 | sort -u)
    # shellcheck disable=SC2086
    chroot "$box" bash -c 'apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@"' \
        apt systemd curl $libs >"$work/apt.log" 2>&1 || return 1
    DESTDIR=$box meson install -C "$(dirname "$cpetd")" --no-rebuild --quiet || return 1
    unit=$(find "$box" -name cpetd.service -path '*/systemd/system/*' | head -n 1)
    etc=$box$(sed -n 's|^LoadCredential=api-keys:\(.*\)/api-keys$|\1|p' "$unit")
    mkdir -p "$etc" "$box/srv/modules" "$box/etc/systemd/system/sockets.target.wants" "$box/etc/systemd/system/multi-user.target.wants"
    cp -r "$model" "$box/srv/model" && cp "$pets/extract.pet" "$box/srv/modules/" && chmod -R a+rX "$box/srv"
    printf '[cpetd]\nmodel = /srv/model\nname = base\npet = extract=/srv/modules/extract.pet\nrequest-log = /var/log/cpetd/requests.log\n' >"$etc/cpetd.conf"
    (
        umask 077
        printf 'acme:%s\n' "$(printf %s the-key | b2sum -l 256 | cut -d' ' -f1)" >"$etc/api-keys"
        echo admin-secret >"$etc/admin-key"
    )
    local units=${unit%/*}
    units=${units#"$box"}
    ln -s "$units"/cpetd{,-admin}.socket "$box/etc/systemd/system/sockets.target.wants/"
    ln -s "$units/cpetd.service" "$box/etc/systemd/system/multi-user.target.wants/"
}

boot() {
    group=$unified/cpetd-test-$$
    mkdir "$group" || return 1
    # In the group before there is a namespace of it, so that it is the root there.
    bash -c 'echo $$ >"$1/cgroup.procs" && shift && exec "$@"' boot "$group" \
        unshare --mount --pid --ipc --uts --net --cgroup --fork --propagation private bash -c '
        cd "$1" && mount --bind . . && cd "$1" &&
        mount -t proc proc proc && mount --bind proc/sys proc/sys && mount -o remount,bind,ro proc/sys &&
        mount -t sysfs -o ro sysfs sys && mount -t cgroup2 cgroup2 sys/fs/cgroup &&
        mount -t tmpfs -o mode=755 tmpfs dev && mount -t tmpfs -o mode=755 tmpfs run && mount -t tmpfs tmpfs tmp || exit 1
        for n in null zero full random urandom tty; do touch dev/$n && mount --bind /dev/$n dev/$n; done
        mkdir dev/pts dev/shm && mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts && mount -t tmpfs tmpfs dev/shm
        ln -s pts/ptmx dev/ptmx; ln -s /proc/self/fd dev/fd
        mkdir -p .old && pivot_root . .old && umount -l /.old && mount --make-rshared / &&
        exec env -i container=test PATH=/usr/sbin:/usr/bin /lib/systemd/systemd systemd.unified_cgroup_hierarchy=1' boot "$box" \
        </dev/null >"$work/boot.log" 2>&1 &
    outer=$!
    for _ in $(seq 300); do
        inside systemctl is-active -q cpetd.service 2>/dev/null && return 0
        sleep 0.2
    done
    inside journalctl --no-pager -o cat >>"$work/boot.log" 2>&1
    return 1
}

inside() {
    local pid
    pid=$(init) && [[ $pid ]] || return 1
    nsenter -t "$pid" -m -p -i -u -n -C chroot "/proc/1/root" env -i PATH=/usr/sbin:/usr/bin bash -c 'cd /; "$@"' inside "$@"
}

# sh TEXT: inside, with ask TASK JSON.
sh_inside() {
    inside bash -c 'set -u
ask() { curl -sS -m 60 "http://127.0.0.1:8000/v1/completions" -H "Authorization: Bearer the-key" -H "Content-Type: application/json" -d "{\"model\": \"$1\", \"prompt\": \"Once\", \"ignore_eos\": true, $2}"; }
is() { [ "$(systemctl show -p "$1" --value cpetd)" = "$2" ] || { echo "$1: $(systemctl show -p "$1" --value cpetd), not $2"; exit 1; }; }
until_is() { for _ in $(seq 200); do [ "$(systemctl show -p "$1" --value cpetd)" = "$2" ] && return; sleep 0.1; done; is "$1" "$2"; }
'"$1"
}

answers() {
    sh_inside 'is StatusText ready
    for t in base extract; do ask $t "\"max_tokens\": 8" | grep -q "\"completion_tokens\":8" || exit 1; done
    curl -sS --unix-socket /run/cpetd-admin.sock http://x/metrics -H "Authorization: Bearer admin-secret" | grep -q "^cpet_ready 1"'
}

confined() {
    sh_inside 'p=$(systemctl show -p MainPID --value cpetd)
    [ "$(stat -c %u /proc/$p)" != 0 ] && grep -q "^CapBnd:[[:space:]]*0*$" /proc/$p/status && ! grep -q rwxp /proc/$p/maps &&
        ! nsenter -t $p -m touch /usr/x /etc/x /srv/x 2>/dev/null && [ -d /var/lib/private/cpetd ]'
}

reloads() {
    sh_inside 'systemctl reload cpetd && until_is StatusText ready && is SubState running && journalctl -u cpetd -o cat | grep -q "were reloaded"'
}

# What the admin API wrote is in the state directory, and there after a restart under another temporary user.
registry_survives_restart() {
    sh_inside 'admin() { curl -sS -f -m 60 -o /dev/null --unix-socket /run/cpetd-admin.sock -H "Authorization: Bearer admin-secret" -X PUT "$@"; }
    admin http://x/admin/v1/modules/written -H "Content-Type: application/octet-stream" --data-binary @/srv/modules/extract.pet &&
        admin http://x/admin/v1/tasks/written -H "Content-Type: application/json" -d "{\"modules\": [\"written\"]}" &&
        systemctl restart cpetd && until_is StatusText ready && ask written "\"max_tokens\": 8" | grep -q "\"completion_tokens\":8" &&
        [ -n "$(ls /var/lib/private/cpetd)" ] && [ -s /var/log/private/cpetd/requests.log ]'
}

# A credential named in the environment, as docs/install.md has it for TLS keys.
credential_in_environment() {
    sh_inside 'mkdir -p /run/systemd/system/cpetd.service.d
    printf "[Service]\nLoadCredential=other-key:/srv/other-key\nEnvironment=CPETD_ADMIN_KEY=%%d/other-key\n" >/run/systemd/system/cpetd.service.d/test.conf
    echo some-secret >/srv/other-key && systemctl daemon-reload && systemctl restart cpetd && until_is StatusText ready || exit 1
    p=$(systemctl show -p MainPID --value cpetd)
    grep -zq "^CPETD_ADMIN_KEY=/run/credentials/cpetd.service/other-key$" /proc/$p/environ
    status=$?
    rm -r /run/systemd/system/cpetd.service.d && systemctl daemon-reload && systemctl restart cpetd && exit $status'
}

stop_loses_none() {
    sh_inside 'for i in 1 2 3 4 5 6 7 8; do ask base "\"max_tokens\": 100, \"stream\": true, \"stream_options\": {\"include_usage\": true}" >/tmp/s$i & done
    for i in 1 2 3 4 5 6 7 8; do for _ in $(seq 200); do [ -s /tmp/s$i ] && break; sleep 0.05; done; done
    systemctl stop cpetd && is Result success && is ActiveState inactive
    wait
    for i in 1 2 3 4 5 6 7 8; do grep -q "^data: .DONE." /tmp/s$i && grep -q "\"completion_tokens\":100" /tmp/s$i || exit 1; done'
}

socket_starts_it() {
    sh_inside 'curl -sS -m 30 -o /dev/null http://127.0.0.1:8000/health && until_is StatusText ready'
}

watchdog_ends_it() {
    sh_inside 'mkdir -p /run/systemd/system/cpetd.service.d
    printf "[Service]\nWatchdogSec=2s\nEnvironment=CPETD_INJECT_DELAY_MS=30000\n" >/run/systemd/system/cpetd.service.d/test.conf
    systemctl daemon-reload && systemctl restart cpetd && sleep 5 && is NRestarts 0 || exit 1
    ask base "\"max_tokens\": 4" >/dev/null 2>&1
    journalctl -u cpetd -o cat | grep -q "Failed with result .watchdog" && until_is NRestarts 1 && until_is StatusText ready
    rm -r /run/systemd/system/cpetd.service.d && systemctl daemon-reload'
}

wrong_configuration_stays_down() {
    sh_inside 'conf=$(systemctl cat cpetd | sed -n "s/^ExecStart=.*--config \([^ ]*\) .*/\1/p")
    systemctl stop cpetd cpetd.socket cpetd-admin.socket 2>/dev/null; echo "kv-bytes = lots" >>$conf
    ! systemctl start cpetd 2>/dev/null; sleep 3; is ActiveState failed && is NRestarts 0 && is ExecMainStatus 78'
}

check install install_all
((failed)) && exit 1
boot || skip "systemd does not come up in namespaces here ($work/boot.log)"
echo "ok test_systemd/boot"
check answers answers
check confined confined
check reloads reloads
check registry_survives_restart registry_survives_restart
check credential_in_environment credential_in_environment
check stop_loses_none stop_loses_none
check socket_starts_it socket_starts_it
check watchdog_ends_it watchdog_ends_it
check wrong_configuration_stays_down wrong_configuration_stays_down
exit $failed
