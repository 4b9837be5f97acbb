"""What boto3 raises, as an error that names the object and what to check."""

import contextlib
import email.utils
import time
from collections.abc import Iterator
from typing import Any

import botocore.exceptions as aws
from botocore.parsers import ResponseParserError
from urllib3.exceptions import HTTPError

from stabn.endpoint import own_endpoint
from stabn.errors import RetryableError, StabnError
from stabn.storage.interface import NotSupported, ObjectNotFound, StorageError

OVERLOADED = ("RequestTimeout", "SlowDown", "Throttling", "ThrottlingException")
EXPIRED = ("ExpiredToken", "ExpiredTokenException", "InvalidToken", "RequestExpired")
FULL = ("XMinioStorageFull", "XMinioAdminBucketQuotaExceeded", "QuotaExceeded", "InsufficientStorage", "StorageFull")
SKEWED_SECONDS = 900  # from which S3 refuses a request for its time; to HEAD it answers 403 without saying why
WRONG_REGION = ("AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "InvalidRegion")


class ExpiredCredentials(StorageError):
    """The credentials are no longer valid; new ones may be there at the next attempt."""


class AnswerCut(RetryableError):
    """An answer ended in its middle, which botocore does not ask again for; a write may have been done."""


def status_of(error: Any) -> int:
    """Return the HTTP status of a ClientError."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


@contextlib.contextmanager
def s3_errors(uri: str) -> Iterator[None]:
    """Turn what boto3 raises into an error that names the object and what to check."""
    endpoint = own_endpoint() or "unset, so AWS itself"
    try:
        yield
    except aws.ClientError as error:
        raise _client_error(uri, endpoint, error) from error
    except (aws.NoCredentialsError, aws.PartialCredentialsError) as error:
        raise StorageError(f"{uri}: no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY") from error
    except aws.SSLError as error:
        raise StorageError(
            f"{uri}: {error}; check that AWS_ENDPOINT_URL ({endpoint}) begins with the right http:// or https://, "
            "AWS_CA_BUNDLE, and this machine's clock"
        ) from error
    except (aws.ConnectionError, aws.HTTPClientError, aws.IncompleteReadError, aws.FlexibleChecksumError) as error:
        raise RetryableError(
            f"{uri}: {error}; is AWS_ENDPOINT_URL ({endpoint}) right and the store running?"
        ) from error
    except HTTPError as error:
        raise AnswerCut(f"{uri}: the answer was cut off ({error}); is the way to {endpoint} sound?") from error
    except ResponseParserError as error:
        said = " ".join(str(error).split())[:200]
        raise StorageError(
            f"{uri}: the answer is none of an S3 store ({said}); is AWS_ENDPOINT_URL ({endpoint}) its S3 API, and not "
            "a web page or a proxy that wants a sign-in?"
        ) from error
    except aws.BotoCoreError as error:
        raise StorageError(f"{uri}: {error}") from error


def _client_error(uri: str, endpoint: str, error: Any) -> StabnError:
    code, status = error.response.get("Error", {}).get("Code", ""), status_of(error)
    said = f"{uri}: the store answered {status} {code}"
    if code == "NoSuchBucket":
        return StorageError(f"{said}; check the bucket's name and AWS_ENDPOINT_URL ({endpoint})")
    if code == "NoSuchKey" or (status == 404 and code in ("404", "NotFound")):
        return ObjectNotFound(f"{uri}: no such object")
    if status == 416:
        return StorageError(f"{uri}: ends before the bytes asked for; the object is not the one its index describes")
    if code == "NotImplemented" or status == 501:
        return NotSupported(f"{said}: {error.response.get('Error', {}).get('Message', '')}")
    if status in (200, 500) and "html" in _headers(error).get("content-type", ""):  # botocore makes 500 of such a 200
        return RetryableError(f"{said} and a web page; is AWS_ENDPOINT_URL ({endpoint}) a proxy that wants a sign-in?")
    if code in FULL or status == 507:
        return StorageError(f"{said}: it is full, or the bucket's quota is used up; make room there")
    if code in OVERLOADED or status == 429 or status >= 500:
        return RetryableError(f"{said}; it is overloaded or restarting, try again")
    if code == "RequestTimeTooSkewed" or (status == 403 and abs(_seconds_ahead(error)) > SKEWED_SECONDS):
        return StorageError(f"{said}; {_clocks(error)}set this machine's clock (NTP)")
    if code in EXPIRED:
        return ExpiredCredentials(f"{said}; renew AWS_SESSION_TOKEN and the keys that belong to it")
    if code in WRONG_REGION or 300 <= status < 400:
        return StorageError(f"{said}; {_where_instead(error)} (AWS_ENDPOINT_URL is {endpoint})")
    if status in (401, 403):
        return StorageError(
            f"{said}; check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL ({endpoint}) "
            "and what these keys may do with the bucket"
        )
    return StorageError(f"{said}: {error.response.get('Error', {}).get('Message', '')}")


def _headers(error: Any) -> dict[str, str]:
    return error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})  # type: ignore[no-any-return]


def _seconds_ahead(error: Any) -> float:
    """Return by how much this machine's clock is ahead of the store's, as its answer tells; 0: it does not."""
    try:
        return time.time() - email.utils.parsedate_to_datetime(_headers(error)["date"]).timestamp()
    except (KeyError, TypeError, ValueError):
        return 0.0


def _clocks(error: Any) -> str:
    """Say how far this machine's clock is from the store's, if the answer tells."""
    minutes = _seconds_ahead(error) / 60
    if not minutes:
        return ""
    return f"this machine's clock is {abs(minutes):.0f} minutes {'ahead of' if minutes > 0 else 'behind'} the store's: "


def _where_instead(error: Any) -> str:
    """Say where a redirecting answer points to."""
    said, headers = error.response.get("Error", {}), _headers(error)
    if region := headers.get("x-amz-bucket-region") or said.get("Region"):
        return f"the bucket is in region {region}: set AWS_DEFAULT_REGION={region}"
    if place := headers.get("location") or said.get("Endpoint"):
        return f"it points to {place[:200]}: set AWS_ENDPOINT_URL to the S3 API's own address, or AWS_DEFAULT_REGION"
    return f"{said.get('Message', '') or 'it redirects'}: set AWS_DEFAULT_REGION to the bucket's region"
