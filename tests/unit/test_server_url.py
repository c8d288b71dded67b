"""Server URLs: read, and shown without their secrets."""

from __future__ import annotations

from pathlib import Path

import pytest
from redis.connection import SSLConnection
from redis.exceptions import InvalidResponse

from spoke.errors import InvalidRequest, ServerUnsuitable
from spoke.protocol.server import explained
from spoke.protocol.url import has_password, mask_url, parse_place, resolve_url


@pytest.mark.parametrize(
    "url",
    [
        "redis://:pa55@h",
        "redis://u:pa55@h:1/2",
        "redis://u:pa55%40x@h:1/2",
        "unix://u:pa55@/s.sock",
        "redis+sentinel://u:pa55@a:1,b:2/s?sentinel_username=v&sentinel_password=pa55&ssl_ca_certs=/ca.pem",
        "rediss://h?password=pa55",
        "redis://u:pa55@[::1",
    ],
)
def test_a_password_is_never_shown(url: str) -> None:
    assert "pa55" not in mask_url(url)
    assert has_password(url)
    assert "pa55" not in repr(mask_url(url))
    with pytest.raises(InvalidRequest) as caught:
        resolve_url(url.replace("redis", "x", 1).replace("unix", "x"))
    assert "pa55" not in str(caught.value)


def test_a_url_without_a_password_is_shown_as_it_is() -> None:
    for url in ("redis://h:1/2", "redis://u@h", "unix:///s.sock", "redis+cluster://a:1,b:2?ssl_ca_certs=/ca.pem"):
        assert mask_url(url) == url
        assert not has_password(url)


def test_sentinels_are_read() -> None:
    place = parse_place("rediss+sentinel://u:p%40w@a:1,[::1]:2,c/main/3?sentinel_password=q&ssl_ca_certs=/ca.pem")
    assert (place.kind, place.service) == ("sentinel", "main")
    assert place.addresses == (("a", 1), ("::1", 2), ("c", 26379))
    assert place.options["username"] == "u"
    assert place.options["password"] == "p@w"
    assert place.options["db"] == 3
    assert place.options["connection_class"] is SSLConnection
    assert place.sentinel_options == {
        "password": "q",
        "ssl_ca_certs": "/ca.pem",
        "connection_class": SSLConnection,
    }
    assert "p@w" not in repr(place)


def test_a_cluster_is_read() -> None:
    place = parse_place("redis+cluster://u:p@a:7000,b")
    assert (place.kind, place.addresses) == ("cluster", (("a", 7000), ("b", 6379)))
    assert place.options == {"username": "u", "password": "p"}


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("redis+sentinel://a:1", "service"),
        ("redis+sentinel:///main", "address"),
        ("redis+cluster://a:1/2", "database"),
        ("redis+cluster://a:x", "cannot be read"),
        ("redis://a:x", "cannot be read"),
        ("redis://a:1/x", "the number of a database"),
        ("redis://a:1/1/2", "the number of a database"),
    ],
)
def test_a_url_that_makes_no_sense_says_why(url: str, why: str) -> None:
    with pytest.raises(InvalidRequest, match=why):
        parse_place(url)


@pytest.mark.parametrize("url", ["file://url.txt", "file://"])
def test_a_file_url_without_a_whole_path_says_how_it_is_written(url: str) -> None:
    with pytest.raises(InvalidRequest, match="file:///PATH"):
        resolve_url(url)


def test_a_server_of_another_kind_is_called_so() -> None:
    with pytest.raises(ServerUnsuitable, match="no Redis or Valkey server"), explained("redis://h"):
        raise InvalidResponse('Protocol error, got "<" as reply type byte')


def test_a_url_can_stand_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "a url").write_text("redis://:pa55@h\n")
    assert resolve_url((tmp_path / "a url").as_uri()) == "redis://:pa55@h"
