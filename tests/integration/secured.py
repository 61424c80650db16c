"""What the tests of secured servers share."""

import contextlib
import hashlib
import itertools

import grpc
from certificates import replace
from whit.v1 import text_generation_pb2_grpc as pb_grpc
from whitd import TIMEOUT, Stream, request

UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
TOKENS = {"mobile": "m-9a0b1c", "batch": "b-2d3e4f"}


def token_line(name, token, limits=""):
    return f"{name} sha256:{hashlib.sha256(token.encode()).hexdigest()} {limits}\n"


def bearer(token):
    return (("authorization", f"Bearer {token}"),)


class Files:
    """A server's certificate, key, client authority and tokens."""

    def __init__(self, folder, authority):
        self.certificate, self.key = folder / "server.pem", folder / "server.key"
        self.client_ca, self.tokens = folder / "clients.pem", folder / "tokens"
        self.write(authority.issue("whitd"))
        self.client_ca.write_bytes(authority.certificate)
        self.tokens.write_text("# who may call\n" + "".join(itertools.starmap(
            token_line, TOKENS.items())))
        self.tls = (f"--tls-certificate={self.certificate}", f"--tls-key={self.key}")

    def write(self, issued):
        replace(self.key, issued.key)
        replace(self.certificate, issued.certificate)


@contextlib.contextmanager
def tls_channel(address, authority, client=None, options=()):
    credentials = grpc.ssl_channel_credentials(
        authority.certificate, client and client.key, client and client.certificate)
    with grpc.secure_channel(address, credentials, options) as channel:
        yield channel


def generate(channel, metadata=(), max_new_tokens=3, **options):
    stub = pb_grpc.TextGenerationServiceStub(channel)
    return Stream(stub.GenerateStream(
        request("Hi", max_new_tokens=max_new_tokens, ignore_eos=True, **options),
        metadata=metadata, timeout=TIMEOUT))
