"""OIDC: who somebody is by a token that the operator's identity provider signed.

`KeySet` holds the provider's public keys, `TokenVerifier` makes an `Identity` of a token; `OidcConfig`, which needs no
further package, says whose tokens count. Nothing here sends users anywhere: the token comes from the client.
"""
