"""Raw mail as bytes: read it, search it, rewrite what leaves, show it. Pure: imports none of ours.

Every function here takes whatever bytes a site handed in. The bytes are the truth; what is read
from them is a best effort, and nothing raises because a mail is broken.
"""
