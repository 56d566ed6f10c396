"""The object store that storage's tests share."""

from tests.s3_server import bucket, s3  # noqa: F401 - fixtures
