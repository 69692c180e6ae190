"""Which session a request belongs to."""

import subprocess
import sys

from cortex_gateway.sessions import session


def test_a_session_is_named_by_header_then_cache_key_then_user() -> None:
    ours, other = (b"x-cortex-session", b"a"), (b"x-session-id", b"b")
    everything = session([other, (b"accept", b"*/*"), ours], "c", "d")
    assert everything == session([ours], None, None)
    assert session([other], "c", "d") == session([other], None, None) != everything
    assert session([], "c", "d") == session([], "c", None) != session([], None, "d")
    assert session([], None, None) == session([(b"x-session-id", b"")], "", "") == 0
    assert session([], "\ud800", None)


def test_it_is_the_same_in_another_process() -> None:
    code = "from cortex_gateway.sessions import session; print(session([], None, 'me'))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(told) == session([], None, "me")
