# One-line aliases; ./dev does the work and needs no make.
.PHONY: demo test check bench fmt lock build-deb
demo test check bench fmt lock build-deb:
	./dev $@ $(ARGS)
