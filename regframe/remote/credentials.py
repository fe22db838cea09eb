"""Credentials of object stores, from the environment and the files that the makers' own tools keep."""

from __future__ import annotations

import configparser
import importlib.util
import json
import os
from pathlib import Path
from typing import Any

from .errors import RemoteError

PREFIXES = ("AWS_", "GOOGLE_", "GCS_", "CLOUDSDK_")
"""Beginnings of the variables that decide how a store is reached."""
HOW = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE for one of ~/.aws/credentials",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS, or run `gcloud auth application-default login`",
}
"""What to do where a store wants credentials and none were found."""
_OWN = ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_WEB_IDENTITY_TOKEN_FILE")
"""Variables by which a cluster lends credentials, which obstore reads itself."""
_GOOGLE = (
    "GOOGLE_SERVICE_ACCOUNT",
    "GOOGLE_SERVICE_ACCOUNT_KEY",
    "GOOGLE_SERVICE_ACCOUNT_PATH",
    "GOOGLE_APPLICATION_CREDENTIALS",
)


def settings(scheme: str) -> dict[str, Any]:
    """Keyword arguments for the store of obstore, beside what it reads from the environment itself."""
    if scheme == "gs":
        return {"skip_signature": True} if anonymous("gs") else {}
    if scheme != "s3":
        return {}
    profile, out = _profile(), {}
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or profile.get("region")
    if region:
        out["region"] = region
    if end := endpoint("s3"):
        out["endpoint"] = end
    if os.environ.get("AWS_ACCESS_KEY_ID") or any(os.environ.get(name) for name in _OWN):
        return out
    if profile.get("aws_access_key_id"):
        out["access_key_id"] = profile["aws_access_key_id"]
        out["secret_access_key"] = profile.get("aws_secret_access_key", "")
        if profile.get("aws_session_token"):
            out["session_token"] = profile["aws_session_token"]
        return out
    if _lent(profile):
        if profile.get("credential_source") == "Ec2InstanceMetadata" and not profile.get("role_arn"):
            return out  # obstore asks the machine itself
        return out | _by_boto3()
    return out | {"skip_signature": True}


def anonymous(scheme: str) -> bool:
    """Whether there are no credentials for a kind of store."""
    if scheme == "gs":
        return not any(os.environ.get(name) for name in _GOOGLE) and not _adc().is_file()
    if os.environ.get("AWS_ACCESS_KEY_ID") or any(os.environ.get(name) for name in _OWN):
        return False
    profile = _profile()
    return not profile.get("aws_access_key_id") and not _lent(profile)


def endpoint(scheme: str) -> str:
    """Address of the server where it is not the maker's own, from the environment or the profile; empty otherwise."""
    if scheme == "s3":
        names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
        return next((os.environ[n] for n in names if os.environ.get(n)), _profile().get("endpoint_url", ""))
    if scheme == "gs":
        path = next((os.environ[n] for n in _GOOGLE[2:] + _GOOGLE[:1] if os.environ.get(n)), "")
        try:
            return str(json.loads(Path(path).read_text(encoding="utf-8")).get("gcs_base_url") or "") if path else ""
        except (OSError, ValueError, AttributeError):
            return ""
    return ""


def _lent(profile: dict[str, str]) -> bool:
    """Whether a profile gets its keys from elsewhere: a role, a sign-on, a program."""
    names = ("role_arn", "sso_session", "sso_start_url", "credential_process", "credential_source")
    return any(profile.get(name) for name in names)


def _by_boto3() -> dict[str, Any]:
    """A provider of keys for roles, sign-ons and programs."""
    if importlib.util.find_spec("boto3") is None:
        raise RemoteError(
            "wanted the package boto3 for the AWS profile in use, which gets its keys from elsewhere; get it with: "
            "pip install boto3",
            "extra",
        )
    from obstore.auth.boto3 import Boto3CredentialProvider

    return {"credential_provider": Boto3CredentialProvider()}


def _profile() -> dict[str, str]:
    """The entries of the profile in use, of both of AWS's files."""
    name = os.environ.get("AWS_PROFILE") or os.environ.get("AWS_DEFAULT_PROFILE") or "default"
    home = Path(os.path.expanduser("~")) / ".aws"  # noqa: PTH111 - as AWS's own tools find it, also without a home
    out: dict[str, str] = {}
    for variable, file in (("AWS_CONFIG_FILE", "config"), ("AWS_SHARED_CREDENTIALS_FILE", "credentials")):
        path = Path(os.environ.get(variable) or home / file)
        parser = configparser.RawConfigParser()
        try:
            parser.read_string(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, configparser.Error):
            continue
        for section in (name, f"profile {name}"):
            if parser.has_section(section):
                out |= dict(parser.items(section))
    return out


def _adc() -> Path:
    """Where Google's tools keep a user's default credentials."""
    folder = os.environ.get("CLOUDSDK_CONFIG")
    return Path(folder or Path(os.path.expanduser("~")) / ".config" / "gcloud") / "application_default_credentials.json"  # noqa: PTH111
