#!/bin/bash
# Runs a command in a clone of this repository on a bare Debian, as a newcomer would: git, make, Python 3.11, no more.
#
#   tests/bare_machine.sh [--user NAME] [--with PACKAGE,...] [--python PREFIX] [--machine DIR] -- COMMAND...
#
#   --user     as this ordinary user, made there, with an empty home; root otherwise
#   --with     Debian packages that the machine has besides (python3-venv, say; it has neither venv nor pip)
#   --python   this Python's prefix (read-only) as its python3.12: for a place where uv cannot fetch one from the internet
#   --machine  keep the machine in this folder, and go on with what is there; a throw-away one otherwise
#
# For root on a host with network and apt. The clone holds what is committed. All mounts and processes live in
# namespaces of their own, so they end with this script, however it ends.
set -euo pipefail

fail() { printf 'bare_machine: %s\n' "$*" >&2; exit 1; }

user=root extra='' python='' machine=''
while [ $# -gt 0 ]; do
    case $1 in
        --user) user=$2; shift 2 ;;
        --with) extra=$2; shift 2 ;;
        --python) python=$2; shift 2 ;;
        --machine) machine=$2; shift 2 ;;
        --) shift; break ;;
        *) fail "what is $1? see the head of $0" ;;
    esac
done
[ $# -gt 0 ] || fail "no command given; see the head of $0"
[ "$(id -u)" = 0 ] || fail "only root can make a machine; run it with sudo"
[ -z "$python" ] || [ -x "$python/bin/python3.12" ] || fail "$python/bin/python3.12 cannot be run"
repository=$(git -C "$(dirname "$0")" rev-parse --show-toplevel)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/cortex-tests
mkdir -p "$cache"

# The system as it is delivered: made once, copied for each machine.
delivered=$cache/bookworm${extra:+-${extra//,/-}}
if [ ! -d "$delivered" ]; then
    command -v mmdebstrap >/dev/null || { apt-get -qq update && apt-get -qq install -y mmdebstrap >/dev/null; }
    making=$(mktemp -d "$cache/making.XXXXXX")
    chmod 755 "$making"
    mmdebstrap --quiet --variant=minbase --include="git,make,python3,ca-certificates${extra:+,$extra}" \
        bookworm "$making" || { rm -rf "$making"; fail "mmdebstrap could not make a system"; }
    # Its devices are mounted for each run; the copies are only files.
    rm -rf "$making"/dev/* && mv -T "$making" "$delivered"
fi

throw_away=
end() {
    # This script's own child, if it was interrupted: with it goes all that runs in the machine.
    pkill -KILL -P $$ || true
    # Nothing is mounted below it for this process: rm reaches nothing but the copy.
    [ -z "$throw_away" ] || rm -rf --one-file-system "$throw_away"
}
trap end EXIT
if [ -z "$machine" ]; then
    machine=$(mktemp -d "$cache/machine.XXXXXX")
    throw_away=$machine
fi
if [ ! -d "$machine/usr" ]; then
    mkdir -p "$machine"
    cp -a --reflink=auto "$delivered/." "$machine"
    chmod 755 "$machine"
fi
cp /etc/resolv.conf /etc/hosts "$machine/etc/"
# A host behind a registry or proxy of its own may have certificates that Debian lacks.
bundle=/etc/ssl/certs/ca-certificates.crt
[ ! -f "$bundle" ] || cp --remove-destination "$bundle" "$machine$bundle"
[ "$user" = root ] || chroot "$machine" id "$user" >/dev/null 2>&1 || chroot "$machine" useradd -m "$user"
home=$(chroot "$machine" getent passwd "$user" | cut -d: -f6)
if [ ! -d "$machine$home/cortex" ]; then
    git clone -q --no-hardlinks "$repository" "$machine$home/cortex"
    chroot "$machine" chown -R "$user:" "$home/cortex"
fi

# The environment of a fresh login, and where this host's registries are, if it says so. By export, not as
# arguments of env: an address may hold a password.
fresh_environment() {
    local name
    while IFS= read -r name; do
        case $name in
            PIP_CERT | SSL_CERT_FILE | REQUESTS_CA_BUNDLE | CURL_CA_BUNDLE) export "$name=$bundle" ;;
            PIP_*INDEX* | PIP_TRUSTED_HOST | PIP_PROXY | PIP_DEFAULT_TIMEOUT | UV_*INDEX* | UV_*MIRROR | UV_HTTP_TIMEOUT) ;;
            HTTP_PROXY | HTTPS_PROXY | NO_PROXY | ALL_PROXY | http_proxy | https_proxy | no_proxy | all_proxy | TERM) ;;
            *) unset "$name" ;;
        esac
    done < <(compgen -e)
    export HOME=$home USER=$user LOGNAME=$user LANG=C.UTF-8
    export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
}

# Runs as process 1 of the new namespaces, as root: mounts, then the command as the user.
inside='
    root=$1 python=$2 user=$3 home=$4; shift 4
    mount --make-rprivate /
    mount --bind "$root" "$root"
    mount -t proc proc "$root/proc"
    mount --rbind -o ro /sys "$root/sys" && mount --make-rslave "$root/sys"
    mount -t tmpfs -o mode=755,size=1m tmpfs "$root/dev"
    mkdir "$root/dev/shm" "$root/dev/pts"
    mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
    mount -t devpts -o newinstance,ptmxmode=0666 devpts "$root/dev/pts"
    ln -s pts/ptmx "$root/dev/ptmx"
    for device in null zero full random urandom tty; do
        : >"$root/dev/$device" && mount --bind "/dev/$device" "$root/dev/$device"
    done
    ln -s /proc/self/fd "$root/dev/fd"
    for stream in 0:stdin 1:stdout 2:stderr; do ln -s "fd/${stream%:*}" "$root/dev/${stream#*:}"; done
    if [ -n "$python" ]; then
        # At the same path, which its executable may hold; every user may come there.
        mkdir -p "$root$python"
        mount --bind "$python" "$root$python"
        mount -o remount,bind,ro "$root$python"
        for folder in $(while python=${python%/*} && [ -n "$python" ]; do echo "$python"; done); do
            chmod a+x "$root$folder"
        done
        ln -sf "$python/bin/python3.12" "$root/usr/local/bin/python3.12"
    fi
    # More than a chroot, in which no user namespace could be made; Postgres under root wants one.
    cd "$root"
    pivot_root . mnt
    umount -l mnt
    exec setpriv --reuid="$user" --regid="$(id -g "$user")" --init-groups "$@"'
# Should this script be killed, process 1 of the machine is too, and with it all else.
status=0
(
    fresh_environment
    exec setpriv --pdeathsig KILL unshare --mount --pid --fork --kill-child --ipc --uts \
        bash -ec "$inside" inside "$machine" "$python" "$user" "$home" \
        sh -c 'cd "$HOME/cortex" && exec "$@"' sh "$@"
) || status=$?
exit "$status"
