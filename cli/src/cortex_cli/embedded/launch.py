"""Become a supervised child: ends with its parent, takes another user's place where asked, then execs.

Run by path with `python -I -S`, as `launch.py PARENT_PID SIGNAL IDENTITY PROGRAM ARGUMENT...`; it imports
only what it needs, because every child passes through it (about 25 ms), and leaves nothing in memory.

IDENTITY is `same`; `namespace` (`nobody` of a new user namespace whose files are the caller's: for
Postgres, which refuses to run as root); or `UID:GID`.
"""

import ctypes
import os
import sys

PR_SET_PDEATHSIG = 1
CLONE_NEWUSER = 0x10000000
REFUSED = 125
"""Exit status when the identity cannot be taken."""


def main() -> None:
    parent, signal, identity, *argv = sys.argv[1:]
    try:
        if identity == "namespace":
            enter_namespace()
        elif identity != "same":
            uid, gid = identity.split(":")
            os.setgroups([])
            os.setgid(int(gid))
            os.setuid(int(uid))
    except OSError as error:
        print(f"cannot run as {identity!r}: {error.strerror}", file=sys.stderr)
        sys.exit(REFUSED)
    # After the change of user, which clears it (prctl(2)).
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal), 0, 0, 0)
    if os.getppid() != int(parent):  # the parent died before the line above
        sys.exit(REFUSED)
    try:
        os.execvpe(argv[0], argv, os.environ)  # noqa: TID251 (hands on what the supervisor chose)
    except OSError as error:
        print(f"cannot run {argv[0]}: {error.strerror}", file=sys.stderr)
        sys.exit(127 if isinstance(error, FileNotFoundError) else 126)


def enter_namespace() -> None:
    import pwd  # here: only Postgres needs it

    uid, gid = os.geteuid(), os.getegid()
    try:
        # initdb wants a user whose name the machine knows; a bare one has no ordinary users.
        inside = pwd.getpwnam("nobody").pw_uid
    except KeyError:
        inside = 1000
    os.unshare(CLONE_NEWUSER)
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{inside} {uid} 1"),
        ("gid_map", f"{inside} {gid} 1"),
    ):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


if __name__ == "__main__":
    main()
