"""Formats of custom resources: what a real API server takes and refuses."""

from __future__ import annotations

import pytest

from kubern.model import custom

# (format, taken, refused)
FORMATS: list[tuple[str, list[str], list[str]]] = [
    ('mac', ['00:11:22:33:44:55', '00-11-22-33-44-55', '0011.2233.4455', '00:11:22:33:44:55:66:77', '0011.2233.4455.6677',
             '00:11:22:33:44:55:66:77:88:99:aa:bb:cc:dd:ee:ff:00:11:22:33', '001122334455', '0011223344556677',
             '0011.2233.4455.6677.8899.aabb.ccdd.eeff.0011.2233'],
     ['00:11:22-33:44:55', '0011:2233:4455', '00:11:22:33:44', '0g:11:22:33:44:55', '', '00:11:22:33:44:55:66']),
    ('ipv4', ['1.2.3.4', '01.2.3.4', '::ffff:1.2.3.4'],
     ['1.2.3', '::1', '1.2.3.4.5', '256.1.1.1', '']),
    ('ipv6', ['::1', '::ffff:1.2.3.4'],
     ['1.2.3.4', 'fe80::1%eth0', '1::2::3', 'zz', '']),
    ('cidr', ['10.0.0.0/8', '10.0.0.1/8', '::/0', '10.0.0.0/08'],
     ['10.0.0.0/33', '1.2.3.4', '']),
    ('uri', ['http://a', '/a', 'mailto:x@y', 'http://[::1]/', 'urn:a:b'],
     ['a', 'http://a b', '', '://x', 'http://a/%zz']),
    ('email', ['a@b', 'a@b.c', '"x y"@a.com', 'A <a@b.c>', 'a@[1.2.3.4]'],
     ['a', 'a b@c', 'a@', '', 'a@b@c']),
    ('hostname', ['a'],
     ['a.b', '-a', 'a_b', 'A.b', 'a.', '1.2.3.4', '', 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa', 'xn--a', 'a..b']),
    ('uuid', ['123e4567-e89b-12d3-a456-426614174000', '123E4567-E89B-12D3-A456-426614174000', '123e4567e89b12d3a456426614174000',
              '123e4567-e89b12d3a456426614174000'],
     ['x', '{123e4567-e89b-12d3-a456-426614174000}']),
    ('uuid3', ['6fa459ea-ee8a-3ca4-894e-db77e160355e'],
     ['6fa459ea-ee8a-4ca4-894e-db77e160355e']),
    ('uuid4', ['f47ac10b-58cc-4372-a567-0e02b2c3d479'],
     ['f47ac10b-58cc-5372-a567-0e02b2c3d479', 'f47ac10b-58cc-4372-c567-0e02b2c3d479']),
    ('uuid5', ['886313e1-3b8a-5372-9b90-0c9aee199e5d'],
     ['886313e1-3b8a-4372-9b90-0c9aee199e5d']),
    ('date', ['2020-01-01'],
     ['2020-1-1', '2020-13-01', '2020-02-30', '20200101', '']),
    ('date-time', ['2020-01-01T00:00:00Z', '2020-01-01t00:00:00z', '2020-01-01T00:00:00.123Z', '2020-01-01T00:00:00+02:00'],
     ['2020-01-01 00:00:00Z', '2020-01-01T00:00:00', '2020-01-01T24:00:00Z', '2020-01-01T00:00:60Z', '2020-01-01', '']),
    ('duration', ['1h', '1d', '1h30m', '-1s', '1.5h', '1 hour', 'P1D', '1w', '1 day 2 hours', '1ns'],
     ['1', '', 'abc']),
    ('byte', ['aGk='],
     ['aGk', 'a b', '%%', '', 'aGk=\n']),
    ('isbn', ['0-306-40615-2', '978-3-16-148410-0'],
     ['123']),
    ('isbn10', ['0306406152'],
     ['030640615X']),
    ('isbn13', ['9783161484100'],
     ['9783161484101']),
    ('creditcard', ['4111111111111111', '4111 1111 1111 1111'],
     ['1234']),
    ('ssn', ['123-45-6789', '123 45 6789'],
     ['123456789', '12-345-6789']),
    ('hexcolor', ['#fff', 'fff', '#FFAABB'],
     ['#ffff', 'ggg']),
    ('rgbcolor', ['rgb(1,2,3)', 'rgb( 1 , 2 , 3 )'],
     ['rgb(256,0,0)', 'rgb(1,2)']),
    ('bsonobjectid', ['507f1f77bcf86cd799439011'],
     ['xyz']),
    ('password', ['x', ''],
     []),
    ('k8s-short-name', ['a'],
     ['A', 'a.b', 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa']),
    ('k8s-long-name', ['a.b'],
     ['A.b', 'a_b']),
    ('nope', ['x'],
     []),
    ('ulid', ['01AN4Z07BY79KA1307SR9X4MV3', 'x'],
     []),
]


@pytest.mark.parametrize(("name", "good", "bad"), FORMATS)
def test_formats(name: str, good: list[str], bad: list[str]) -> None:
    schema = {"type": "object", "properties": {"x": {"type": "string", "format": name}}}
    assert {v: not custom.validate({"x": v}, schema, None) for v in (*good, *bad)} == {**dict.fromkeys(good, True), **dict.fromkeys(bad, False)}
