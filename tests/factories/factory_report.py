"""What a report is made from in tests, where several of them need it."""

SCRIPT = "<script>alert(1)</script> | a*b_c `d`"
