// Command ferretdb serves MongoDB's protocol from SQLite files: the real server that the tests use where there is no mongod.
//
// FerretDB is used as a library, because its own command can't be built outside of its repository: it panics without a version file that the
// published module lacks. As a library it reports nothing to anybody and opens no other port.
package main

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/FerretDB/FerretDB/ferretdb"
)

func main() {
	listen := flag.String("listen", "127.0.0.1:0", "address to listen on")
	data := flag.String("data", "", "directory of the data, which is made if need be")
	flag.Parse()
	if err := run(*listen, *data); err != nil {
		fmt.Fprintln(os.Stderr, "ferretdb:", err)
		os.Exit(1)
	}
}

func run(listen, data string) error {
	dir, err := filepath.Abs(data)
	if data == "" || err != nil {
		return fmt.Errorf("-data is missing or wrong: %q", data)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	files := url.URL{Scheme: "file", OmitHost: true, Path: dir + "/"} // The slash at the end makes it a directory.
	server, err := ferretdb.New(&ferretdb.Config{
		Listener:  ferretdb.ListenerConfig{TCP: listen},
		Logger:    slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError})),
		Handler:   "sqlite",
		SQLiteURL: files.String(),
	})
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	fmt.Println("listening on", listen) // New has bound the address; it accepts once it runs.
	return server.Run(ctx)
}
