"""The evidence: sealing the record, delivering checkpoints, verifying, exporting.

``lines`` owns the text that is hashed, ``checkpoint`` the text that is signed, ``keys`` the keys, ``seal`` and
``sealing`` the making of checkpoints, ``deliver`` how they leave the database, ``verify``, ``checks`` and ``findings``
the verification, ``pack`` the export, ``roles`` the rights on PostgreSQL. Nothing here writes jobs or history.
"""
