//go:build linux

package main

import (
	"fmt"
	"io"
	"net"
	"os"
)

func listen(port string, _ []string) error {
	l, err := net.Listen("tcp", ":"+port)
	if err != nil {
		return err
	}
	name, err := os.Hostname()
	if err != nil {
		return err
	}
	go func() {
		for {
			caller, err := l.Accept()
			if err != nil {
				fmt.Fprintln(os.Stderr, "actor: listen:", err)
				os.Exit(1)
			}
			fmt.Fprintln(caller, "hello from", name)
			caller.Close()
		}
	}()
	return nil
}

func call(address string, _ []string) error {
	conn, err := net.Dial("tcp", address)
	if err != nil {
		return err
	}
	defer conn.Close()
	// Nothing is to come from here, so that who waits for it ends too.
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		return err
	}
	_, err = io.Copy(os.Stdout, conn)
	return err
}
