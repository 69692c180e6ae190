"""SecretBox: what must be kept secret in Postgres, encrypted with the fleet's master key."""

from cortex_shared.errors import InvalidInput, Unavailable
from cryptography.fernet import Fernet, InvalidToken


class SecretBox:
    """Encrypts and decrypts with one Fernet key."""

    def __init__(self, master_key: str) -> None:
        """Raises InvalidInput when it is no Fernet key."""
        try:
            self._fernet = Fernet(master_key)
        except ValueError as error:
            raise InvalidInput(
                "CORTEX_MASTER_KEY is not a Fernet key (32 bytes in URL-safe base64)",
                code="secrets.bad_master_key",
                field="master_key",
                remedy="make one with: python -c "
                "'from cryptography.fernet import Fernet; print(Fernet.generate_key().decode())'",
            ) from error

    def encrypt(self, secret: str) -> bytes:
        """Encrypted form of a secret."""
        return self._fernet.encrypt(secret.encode())

    def decrypt(self, encrypted: bytes) -> str:
        """The secret; raises Unavailable (`secrets.wrong_key`) if another master key encrypted it."""
        try:
            return self._fernet.decrypt(encrypted).decode()
        except InvalidToken as error:
            raise Unavailable(
                "a stored secret cannot be decrypted: CORTEX_MASTER_KEY is not the one that encrypted it",
                code="secrets.wrong_key",
                remedy="start the API with the former CORTEX_MASTER_KEY, or set the secret anew",
            ) from error
