"""One file = one DVC stage = one params section = reports/<stage>/, by one name throughout."""
