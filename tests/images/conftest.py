"""What these tests share with each other and with the smoke tests."""

from tests.images.fixtures import hosts, made, vendor

__all__ = ["hosts", "made", "vendor"]
