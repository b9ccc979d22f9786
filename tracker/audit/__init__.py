"""The audit trail: canonical lines, checkpoints over them, their sealing, their proof and its hand-over.

``lines`` owns the text that is hashed, ``checkpoint`` the signed text about it and the keys, ``seal`` the making of
checkpoints, ``deliver`` how they leave the database. Nothing here writes jobs or history.
"""
