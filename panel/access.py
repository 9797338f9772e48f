"""The token that opens the panel: other users of this machine reach its port, but not its data.

The printed address carries the token once. The first answer moves it into a cookie that scripts
cannot read and redirects to the address without it, so that it stays in no history, referrer or
screenshot. Cookies do not tell ports apart: each panel's cookie has a name of its own, lest two
panels behind tunnels of one browser lock each other out.
"""

import hashlib
import secrets
from urllib.parse import parse_qsl, urlencode

TOKEN_PARAMETER = "token"
TOKEN_BYTES = 32


def make_token() -> str:
    """A new secret of `TOKEN_BYTES` random bytes, safe in an address."""
    return secrets.token_urlsafe(TOKEN_BYTES)


class TokenAccess:
    """Tells who may read, by the token in the address or in the cookie.

    Args:
        token: the secret.
        root_path: prefix under which a proxy serves the panel; the cookie is sent below it only.
    """

    def __init__(self, token: str, root_path: str = "") -> None:
        self._token = token.encode()
        self._cookie_path = f"{root_path.rstrip('/')}/"
        self.cookie_name = f"dreamscope_{hashlib.sha256(self._token).hexdigest()[:12]}"

    def opens(self, candidate: str) -> bool:
        """Whether `candidate` is the token; takes the same time wherever they differ."""
        return secrets.compare_digest(candidate.encode("utf-8", "surrogatepass"), self._token)

    def is_cookie_valid(self, cookie_headers: list[str]) -> bool:
        """Whether one of the `Cookie` headers holds the token.

        Split at semicolons and no further (RFC 6265, section 5.4), since a stricter reader such as
        `http.cookies` drops all cookies over one that it cannot read: whatever else the browser
        keeps for localhost, of any port, comes in the same header.
        """
        pairs = (pair.strip() for header in cookie_headers for pair in header.split(";"))
        own = f"{self.cookie_name}="
        return any(pair.startswith(own) and self.opens(pair[len(own) :]) for pair in pairs)

    def set_cookie(self) -> str:
        """Value of the `Set-Cookie` header.

        `Lax` and not `Strict`, since a link to the panel in a message of a web page must open it;
        answers to such a link tell the other page nothing.
        """
        return (
            f"{self.cookie_name}={self._token.decode()}; Path={self._cookie_path}; "
            "HttpOnly; SameSite=Lax"
        )


def token_in_query(query: str) -> str | None:
    """The token that a query string carries; None without one."""
    return dict(parse_qsl(query)).get(TOKEN_PARAMETER)


def query_without_token(query: str) -> str:
    """The query string that is left when the token is taken out."""
    pairs = parse_qsl(query, keep_blank_values=True)
    return urlencode([(name, value) for name, value in pairs if name != TOKEN_PARAMETER])
