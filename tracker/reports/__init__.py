"""The query module: what the record says, as SQL views and as reports. One file a report; ``views`` has the views."""
